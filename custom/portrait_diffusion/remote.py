"""Configurations from elsewhere, by https or from the Hugging Face hub: data that nobody vouches for.

A remote configuration is fetched over https alone, limited in size and time, read as plain YAML with our own resolvers
only (`schema`), and may name no path outside the working folder. Whoever runs it sees it first and agrees.
"""
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import requests

from .errors import EnvironmentProblem, UsageError
from .schema import MAX_BYTES, parse_yaml

TIMEOUT_S = 20.0
MAX_REDIRECTS = 5
HUB = "https://huggingface.co"
_HUB_URL = re.compile(r"hf://([\w.-]+)/([\w.-]+)/((?:[\w.-]+/)*[\w.-]+\.ya?ml)(?:@([\w.-]+))?")


@dataclass(frozen=True)
class RemoteConfig:
    """A fetched configuration: where it came from, what it says, and the SHA-256 of its bytes."""

    url: str
    content: dict[str, Any]
    sha256: str
    size: int


def https_url(text: str) -> str:
    """The https address of a ``--config`` URL; ``hf://user/repo/file.yaml[@revision]`` is a file on the hub.

    Raises: UsageError for other schemes and malformed addresses.
    """
    if text.startswith("hf://"):
        found = _HUB_URL.fullmatch(text)
        if not found or ".." in text:
            raise UsageError(f"'{text}' is no file on the hub; write hf://USER/REPO/FILE.yaml or ...yaml@REVISION.")
        user, repo, file, revision = found.groups()
        return f"{HUB}/{user}/{repo}/resolve/{quote(revision or 'main')}/{quote(file)}"
    parts = urlsplit(text)
    if parts.scheme.lower() != "https" or not parts.hostname:
        raise UsageError(f"'{text}' is no configuration; give a file, an https:// URL or hf://USER/REPO/FILE.yaml.")
    if parts.username or parts.password:
        raise UsageError("A configuration's URL must not hold a user name or password.")
    return text


def download(url: str) -> bytes:
    """Bytes of an https address, at most `MAX_BYTES`; redirects lead to https only.

    Raises: UsageError for an answer that is too large or leads elsewhere, EnvironmentProblem where none comes.
    """
    session = requests.Session()
    session.trust_env = True  # proxies and certificates of this machine
    session.auth = _NoAuth()  # but never credentials from .netrc
    try:
        for _ in range(MAX_REDIRECTS + 1):
            with session.get(url, stream=True, timeout=TIMEOUT_S, allow_redirects=False) as answer:
                if answer.is_redirect:
                    url = https_url(urljoin(url, answer.headers["location"]))
                    continue
                if answer.status_code != 200:
                    raise EnvironmentProblem(f"{url} answers {answer.status_code} {answer.reason}; check the address.")
                data = b""
                for block in answer.iter_content(1 << 16):
                    data += block
                    if len(data) > MAX_BYTES:
                        raise UsageError(f"{url}: a configuration may have at most {MAX_BYTES} bytes; this is larger.")
                return data
    except requests.RequestException as error:
        reason = str(error).splitlines()[0][:200]
        raise EnvironmentProblem(f"{url} can't be fetched ({reason}); check address and connection.") from error
    raise UsageError(f"{url}: more than {MAX_REDIRECTS} redirects.")


class _NoAuth(requests.auth.AuthBase):
    """Adds nothing to a request."""

    def __call__(self, request: Any) -> Any:
        return request


def fetch_config(text: str) -> RemoteConfig:
    """Fetch a configuration and read it as plain YAML. Raises: UsageError, EnvironmentProblem."""
    url = https_url(text)
    data = download(url)
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(parse_yaml(data, text), resolve=False)
    return RemoteConfig(url, content, hashlib.sha256(data).hexdigest(), len(data))


def outside_paths(config: Any, folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """Values of a resolved configuration that are paths out of the working folder: (key path, value).

    That is: absolute ones of any system, those with ``..`` or ``~`` in front, and those whose links lead out.
    """
    folder = Path(folder or os.getcwd()).resolve()

    def walk(value: Any, place: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, child in value.items():
                yield from walk(key, place)
                yield from walk(child, f"{place}.{key}" if place else str(key))
        elif isinstance(value, list | tuple):
            for i, child in enumerate(value):
                yield from walk(child, f"{place}[{i}]")
        elif isinstance(value, str) and place != "description" and _leads_out(value, folder):
            yield place, value

    yield from walk(config, "")


def _leads_out(text: str, folder: Path) -> bool:
    windows = PureWindowsPath(text)
    if "\0" in text or PurePosixPath(text).is_absolute() or windows.drive or windows.root:
        return True
    if ".." in windows.parts or re.match(r"~[\w.-]*([/\\]|$)", text) or re.match(r"file:", text, re.IGNORECASE):
        return True
    try:
        return len(text) < 1000 and not (folder / text).resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError):
        return True


def check_paths(config: dict[str, Any], origin: str) -> None:
    """Raises: UsageError for a resolved configuration that names a path outside the working folder."""
    for place, value in outside_paths(config):
        raise UsageError(
            f"{origin}: key '{place}' names the path {value[:80]!a} outside the working folder, which a shared "
            "configuration may not; look at it, and if you trust it save it as a file and give that."
        )
