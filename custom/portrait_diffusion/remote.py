"""Configurations from elsewhere, by https or from the Hugging Face hub: data that nobody vouches for.

A remote configuration is fetched over https alone, limited in size and time, read as plain YAML with our own resolvers
only (`schema`), and may name no path outside the working folder. Whoever runs it sees it first and agrees.
"""
import hashlib
import os
import queue
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import requests

from .errors import EnvironmentProblem, UsageError
from .export.made_with import named_models, own_guidances
from .files import leads_out
from .schema import MAX_BYTES, parse_yaml
from .visible import escaped, find_hidden

TIMEOUT_S = 20.0
"""Seconds without a byte after which a server is given up."""
DOWNLOAD_LIMIT_S = 60.0
"""Seconds for the whole of a download, redirects included: a server that sends a byte now and then ends here."""
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

    Raises: UsageError for other schemes, malformed addresses, and hidden characters (some come with copied text).
    """
    if find_hidden(text, allowed="") >= 0:
        raise UsageError(f"The address '{escaped(text)}' holds a hidden character; type it anew.")
    if text.startswith("hf://"):
        found = _HUB_URL.fullmatch(text)
        if not found or ".." in text:
            raise UsageError(f"'{text}' is no file on the hub; write hf://USER/REPO/FILE.yaml or ...yaml@REVISION.")
        user, repo, file, revision = found.groups()
        return f"{HUB}/{user}/{repo}/resolve/{quote(revision or 'main')}/{quote(file)}"
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise UsageError(f"{text!a} is no valid address ({error}); check it.") from error
    if parts.scheme.lower() != "https" or not parts.hostname:
        raise UsageError(f"'{text}' is no configuration; give a file, an https:// URL or hf://USER/REPO/FILE.yaml.")
    if parts.username or parts.password:
        raise UsageError("A configuration's URL must not hold a user name or password.")
    return text


def download(url: str) -> bytes:
    """Bytes of an https address, at most `MAX_BYTES` within `DOWNLOAD_LIMIT_S`; redirects lead to https only.

    The work is a thread's, which is left alone when time is up: no timeout of a socket bounds looking up the name, the
    handshake, or headers and bodies that come byte by byte.

    Raises: UsageError for an answer that is too large or leads elsewhere, EnvironmentProblem where none comes in time.
    """
    outcome: queue.SimpleQueue = queue.SimpleQueue()
    given_up = threading.Event()

    def work() -> None:
        try:
            outcome.put((_get(url, given_up), None))
        except BaseException as error:  # raised below, in the thread that asked
            outcome.put((b"", error))

    threading.Thread(target=work, daemon=True, name="download").start()
    try:
        data, error = outcome.get(timeout=DOWNLOAD_LIMIT_S)
    except queue.Empty:
        raise EnvironmentProblem(
            f"{url} has not sent its configuration within {DOWNLOAD_LIMIT_S:g} s; try again later, or download it "
            "yourself and give the file."
        ) from None
    finally:
        given_up.set()
    if error is not None:
        raise error
    return data


def _get(url: str, given_up: threading.Event) -> bytes:
    """The work of `download`; ends soon after `given_up` is set."""
    asked = url
    with _Session() as session:
        session.trust_env = True  # proxies and certificates of this machine
        session.auth = _NoAuth()  # but never credentials from .netrc
        session.headers["Accept-Encoding"] = "identity"  # a small compressed answer may become a very large one
        try:
            for _ in range(MAX_REDIRECTS + 1):
                with session.get(url, stream=True, timeout=TIMEOUT_S, allow_redirects=False) as answer:
                    if not answer.is_redirect:
                        return _body(answer, url, given_up)
                    url = _redirected(url, answer.headers["location"])
        except (requests.RequestException, ValueError) as error:  # the second: names that are none
            cause = getattr(error.args[0], "reason", error) if error.args else error  # inside "max retries exceeded"
            reason = (str(cause) or type(cause).__name__).splitlines()[0][:200]
            raise EnvironmentProblem(
                f"{url} can't be fetched ({escaped(reason)}); check address and connection."
            ) from error
    raise UsageError(f"{asked}: more than {MAX_REDIRECTS} redirects; give the address where they end.")


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads. Raises: UsageError if that is not an https address."""
    try:
        target = urljoin(url, location)
        if target.lower().startswith("https:"):
            return https_url(target)
    except (UsageError, ValueError):
        pass  # told below, with where it came from
    raise UsageError(
        f"{url} redirects to '{escaped(location[:200])}'; a configuration comes from https:// addresses without user "
        "names alone, so check the address."
    )


def _body(answer: requests.Response, url: str, given_up: threading.Event) -> bytes:
    """Bytes of an answer, see `download`."""
    if answer.status_code != 200:
        reason = escaped(str(answer.reason)[:100])
        hint = "it is not there, or not public" if answer.status_code in (401, 403, 404) else "try again later"
        raise EnvironmentProblem(f"{url} answers {answer.status_code} {reason}: {hint}; check the address.")
    coding = answer.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise EnvironmentProblem(
            f"{url} comes compressed ('{escaped(coding[:40])}') though plain bytes were asked for; download it "
            "yourself and give the file."
        )
    data = b""
    for block in answer.iter_content(1 << 12):
        data += block
        if len(data) > MAX_BYTES:
            raise UsageError(f"{url}: a configuration may have at most {MAX_BYTES} bytes; this is larger.")
        if given_up.is_set():
            break
    return data


class _Session(requests.Session):
    """Leaves redirects to `_get`: the library reads the whole body of one even where it does not follow it."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class _NoAuth(requests.auth.AuthBase):
    """Adds nothing to a request."""

    def __call__(self, request: Any) -> Any:
        return request


def fetch_config(text: str) -> RemoteConfig:
    """Fetch a configuration and read it as plain YAML. Raises: UsageError, EnvironmentProblem."""
    url = https_url(text)
    data = download(url)
    if data.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise UsageError(
            f"{text} is a web page, no YAML; give the address of the file itself (GitHub calls it raw; for the hub "
            "write hf://USER/REPO/FILE.yaml)."
        )
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(parse_yaml(data, text, shared=True), resolve=False)
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
    if leads_out(text):
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


def check_offline(config: dict[str, Any], origin: str) -> None:
    """Raises: UsageError for a configuration whose guidance may fetch public models while it runs."""
    for kind, section in own_guidances(config.get("system") or {}):
        named = named_models({"guidance_type": kind, "guidance": section})
        public = sorted({text for *_, text in named if text != "bundled" and not Path(text).exists()})
        if public and section.get("offline") is not True:
            raise UsageError(
                f"{origin}: the guidance with {', '.join(public)} lacks 'offline: true', and a shared configuration "
                "may not download while it runs; add system.guidance.offline=true (the command models gets what is "
                "missing)."
            )
