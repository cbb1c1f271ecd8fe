"""Configurations from elsewhere: what is fetched and how, and that hostile ones are refused before anything happens."""
import contextlib
import gzip
import http.server
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest
import requests
import yaml
from portrait_diffusion import cli, preflight, remote
from portrait_diffusion.cli import run
from portrait_diffusion.cli.describe import describe_stages, made_elsewhere
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.export.made_with import made_with
from portrait_diffusion.export.share import RUN_KEYS
from portrait_diffusion.pipeline import PortraitPipeline
from portrait_diffusion.remote import check_offline, check_paths, https_url, outside_paths
from portrait_diffusion.schema import MAX_BYTES
from portrait_diffusion.settings import load_pipeline_config, prior_weights
from portrait_diffusion.shipped import find_config
from portrait_diffusion.visible import check_visible

ROOT = Path(__file__).resolve().parents[1]
COMMUNITY = sorted((ROOT / "configs" / "community").glob("*.yaml"))
GOOD = "name: theirs\nsystem: {inversion: {latent_steps: 3}, made_with: {version: 0.0.1}}\n"
PAGES = {
    "/good.yaml": GOOD.encode(), "/large.yaml": b"name: " + b"x" * (MAX_BYTES + 1), "/binary.yaml": b"\xff\xfe",
    "/code.yaml": b"name: !!python/object/apply:os.system ['touch hacked']",
    "/env.yaml": b"name: ${oc.env:HOME}", "/outside.yaml": b"name: ../../elsewhere",
    "/joined.yaml": b"name: ${tag}/../x\ntag: y", "/unknown.yaml": b"system: {made_with: {version: 9.9.9}, news: 1}",
    "/backwards.yaml": "name: theirs # \u202eecid\n".encode(), "/screen.yaml": b'"\\e[2Jname": x',
    "/lines.yaml": b'name: "x\\ndevice  none"', "/page.yaml": b"\n<!DOCTYPE html><html><body>a: b</body></html>",
    "/public.yaml?a&b": b"system: {guidance_type: portrait-diffusion-hpdm-guidance, stages: {restore: {steps: 1}}, "
    b"guidance: {pretrained_model_name_or_path: org/base, controlnets: [{path: org/lines}]}}",
    "/steps.yaml": b"system: {stages: {restore: {steps: 1, loss: {lambda_rgb: 1}}}}",
    "/weights.yaml": b"system: {prior: {checkpoint: /etc/passwd}}",
    "/bomb.yaml": b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (c, c, *([c - 1] * 9)) for c in range(98, 107)
    ),
}  # fmt: skip


class Pages(http.server.BaseHTTPRequestHandler):
    headers_seen: list = []

    def do_GET(self):
        Pages.headers_seen.append(dict(self.headers))
        if self.path in SLOW:
            with contextlib.suppress(OSError):  # the other side has given up
                SLOW[self.path](self)
            return
        to = {"/to-http": "http://127.0.0.1:1/x.yaml", "/to-file": "file:///etc/passwd", "/loop": "/loop",
              "/to-good": "/good.yaml", "/to-screen": "ftp://x/\x1b[2J", "/to-brackets": "https://[x/y",
              "/to-hidden": "https://localhost/\x9b2J",
              "/to-user": "https://me:secret@localhost/x"}.get(self.path)  # fmt: skip
        body = PAGES.get(self.path)
        self.send_response(302 if to else 200 if body is not None else 404)
        if to:
            self.send_header("Location", to)
        self.end_headers()
        if body and not to:
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def repeated(part, seconds=0.0, most=1000):
    """An answer that goes on with `part` every few `seconds`, so that no timeout between two bytes ends it."""

    def answer(page, start=b""):
        page.wfile.write(b"HTTP/1.1 %s OK\r\n" % (b"302" if b"Location" in start else b"200") + start)
        ends = time.monotonic() + 3
        for i in range(most):
            page.wfile.write(part if isinstance(part, bytes) else part(i))
            time.sleep(seconds)
            if time.monotonic() > ends:  # long after the tests' limit
                return
        page.wfile.write(b"\r\n")

    return answer


def redirected_slowly(page):
    time.sleep(0.15)
    page.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /redirects\r\n\r\n")


def compressed(page):
    page.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(10**7)))


SLOW = {
    "/body": lambda page: repeated(b"#", 0.05)(page, b"\r\n"),
    "/chunks": lambda page: repeated(b"1\r\n#\r\n", 0.05)(page, b"Transfer-Encoding: chunked\r\n\r\n"),
    "/header": repeated(b"x", 0.05), "/headers": repeated(lambda i: b"x-%d: y\r\n" % i, 0.05),
    "/continue": lambda page: repeated(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01)(page, b"\r\n"),
    "/redirects": redirected_slowly, "/many-headers": repeated(lambda i: b"x-%d: y\r\n" % i),
    "/huge-header": repeated(b"x" * 1000), "/endless": lambda page: repeated(b"#" * 10**5)(page, b"\r\n"),
    "/compressed": compressed,
    "/long-redirect": lambda page: repeated(b"#", 0.05)(page, b"Location: /good.yaml\r\n\r\n"),
    "/screen": lambda page: page.wfile.write(b"HTTP/1.1 404 \x1b[2J gone\r\n\r\n"),
}  # fmt: skip
"""Answers that never end, or are larger than they look."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An https server of this machine whose certificate the library is told to trust."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate for the test's server")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(folder / "cert.pem"))
        patch.setenv("NO_PROXY", "localhost")
        patch.setenv("no_proxy", "localhost")
        yield f"https://localhost:{httpd.server_port}"
    httpd.shutdown()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a photo."""
    shutil.copyfile(ROOT / "examples" / "astronaut.png", tmp_path / "me.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_addresses():
    assert https_url("https://example.org/a.yaml") == "https://example.org/a.yaml"
    assert https_url("hf://me/heads/fine/a.yaml") == "https://huggingface.co/me/heads/resolve/main/fine/a.yaml"
    assert https_url("hf://me/heads/a.yaml@v1.2").endswith("/resolve/v1.2/a.yaml")


@pytest.mark.parametrize(
    "address",
    ["https://[x/a.yaml", "https://x/a\u200b.yaml", "https://x/\x1b[2J", "http://example.org/a.yaml",
     "file:///etc/passwd", "ftp://x/y.yaml", "https://", "https://me:secret@x/y.yaml",
     "hf://me/a.yaml", "hf://me/heads/../../x.yaml", "hf://me/heads/a.txt", "hf://me/heads/a.yaml?x=1"],
)  # fmt: skip
def test_other_addresses_are_refused(address):
    with pytest.raises(UsageError):
        https_url(address)


def test_a_redirect_within_https_is_followed_and_no_credentials_are_sent(server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    found = remote.fetch_config(f"{server}/to-good")
    assert found.content["name"] == "theirs" and found.url == f"{server}/to-good" and found.size == len(GOOD)
    assert not any("Authorization" in headers for headers in Pages.headers_seen)


@pytest.mark.parametrize(
    ("page", "error", "message"),
    [("/large.yaml", UsageError, "at most 1000000 bytes"), ("/binary.yaml", UsageError, "UTF-8"),
     ("/code.yaml", UsageError, "tag .* isn't allowed"), ("/bomb.yaml", UsageError, "more than 100000 values"),
     ("/to-http", UsageError, "/to-http redirects to 'http:"), ("/to-file", UsageError, "redirects to 'file:"),
     ("/to-screen", UsageError, r"redirects to 'ftp://x/<U\+001B>\[2J'"), ("/to-brackets", UsageError, "redirects to"),
     ("/to-user", UsageError, "redirects to"), ("/to-hidden", UsageError, r"/<U\+009B>2J"),
     ("/loop", UsageError, "/loop: more than 5 redirects"),
     ("/nothing", EnvironmentProblem, "answers 404 .*: it is not there, or not public"),
     ("/page.yaml", UsageError, "is a web page, no YAML; give the address of the file itself"),
     ("/screen", EnvironmentProblem, r"404 <U\+001B>\[2J gone"),
     ("/many-headers", EnvironmentProblem, "more than 100 headers"), ("/huge-header", EnvironmentProblem, "line"),
     ("/endless", UsageError, "at most 1000000 bytes"), ("/compressed", EnvironmentProblem, "compressed .'gzip'"),
     ("/backwards.yaml", UsageError, r"line 1, column 16 has U\+202E"),
     ("/screen.yaml", UsageError, r"line 1, column 1 begins a text that holds U\+001B")],
)  # fmt: skip
def test_bad_answers(server, page, error, message):
    with pytest.raises(error, match=message) as caught:
        remote.fetch_config(server + page)
    assert str(caught.value).isprintable()


def test_the_body_of_a_redirect_is_not_read(server, monkeypatch):
    monkeypatch.setattr(remote, "DOWNLOAD_LIMIT_S", 1.5)
    assert remote.fetch_config(f"{server}/long-redirect").content["name"] == "theirs"


@pytest.mark.parametrize("page", ["/body", "/chunks", "/header", "/headers", "/continue", "/redirects"])
def test_a_download_ends_however_slowly_it_comes(server, monkeypatch, page):
    """None of these is silent for long: only the limit for the whole download ends them."""
    monkeypatch.setattr(remote, "DOWNLOAD_LIMIT_S", 0.6)
    started = time.monotonic()
    with pytest.raises(EnvironmentProblem, match=f"{page} has not sent its configuration within 0.6 s; .* the file"):
        remote.download(server + page)
    assert 0.5 < time.monotonic() - started < 2


def test_a_server_that_accepts_and_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(remote, "DOWNLOAD_LIMIT_S", 0.3)
    monkeypatch.setattr(remote, "TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(EnvironmentProblem, match="within 0.3 s"):
        remote.download(f"https://127.0.0.1:{silent.getsockname()[1]}/x.yaml")


def test_the_reason_is_told_without_the_librarys_wrapping():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(EnvironmentProblem) as caught:
        remote.download(f"https://127.0.0.1:{port}/x.yaml")
    assert "refused" in str(caught.value) and "retries" not in str(caught.value)
    assert str(caught.value).endswith("); check address and connection.")


@pytest.mark.parametrize("host", ["a..b", "a" * 300, "x:99999999"])
def test_names_that_are_none(host):
    with pytest.raises(EnvironmentProblem, match="can't be fetched"):
        remote.download(f"https://{host}/x.yaml")


@pytest.mark.parametrize(
    ("page", "message"),
    [("/env.yaml", "oc.env"), ("/outside.yaml", "key 'name' names the path"), ("/joined.yaml", "key 'name'"),
     ("/weights.yaml", "key 'system.prior.checkpoint'"), ("/code.yaml", "isn't allowed"),
     ("/unknown.yaml", "unknown key 'system.news'.*made with portrait-diffusion 9.9.9")],
)  # fmt: skip
def test_hostile_ones_stop_the_command_before_anything_is_written(server, here, capsys, page, message):
    assert cli.main(["--image", "me.png", "--yes", "--config", server + page]) == 2
    assert re.search(message, capsys.readouterr().err) and [p.name for p in here.iterdir()] == ["me.png"]


def test_it_is_shown_and_asks(server, here, capsys, monkeypatch):
    arguments = ["--image", "me.png", "--config", f"{server}/good.yaml"]
    assert cli.main(arguments) == 2, "nobody can be asked"
    text = capsys.readouterr()
    assert "add --yes to agree" in text.err and "made with portrait-diffusion 0.0.1" in text.err
    assert f"from    {server}/good.yaml" in text.out and "latent_steps: 3" in text.out and "SHA-256" in text.out
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    started = []
    monkeypatch.setattr(run, "make_head", lambda *a: started.append(a) or 0)
    for answer in (lambda: "n", lambda: "", end_of_input):
        monkeypatch.setattr("builtins.input", answer)
        assert cli.main(arguments) == 2 and not started and [p.name for p in here.iterdir()] == ["me.png"]
        text = capsys.readouterr()
        assert text.err.endswith("Not run; nothing was written.\n") and "Run this? [y/N]" in text.out
    assert cli.main([*arguments, "--yes"]) == 0 and len(started) == 1
    assert started[0][0].config.system.inversion.latent_steps == 3


def test_nothing_as_large_as_a_stranger_wants_is_built_before_it_is_agreed_to(server, here, capsys, monkeypatch):
    built, arguments = [], ["--image", "me.png", "--config", f"{server}/steps.yaml"]
    monkeypatch.setattr(preflight, "check_stages", built.append)
    started = []
    monkeypatch.setattr(run, "make_head", lambda *a: started.append(a) or 0)
    assert cli.main([*arguments, "--dry-run"]) == 0 and cli.main(arguments) == 2 and not built
    assert "without building the stages" in capsys.readouterr().out
    assert cli.main([*arguments, "--dry-run", "--yes"]) == 0 and len(built) == 1 and not started
    assert capsys.readouterr().out.endswith("All inputs are in order; nothing was written.\n")
    assert cli.main([*arguments, "--yes"]) == 0 and len(built) == 2 and len(started) == 1


def end_of_input():
    raise EOFError


def test_a_dry_run_shows_where_it_comes_from_and_asks_nothing(server, here, capsys):
    assert cli.main(["--image", "me.png", "--config", f"{server}/good.yaml", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"from    {server}/good.yaml ({len(GOOD)} bytes, SHA-256 " in text and "Run this?" not in text
    assert "latent_steps: 3" in text and text.endswith("All inputs are in order; nothing was written.\n")
    assert [p.name for p in here.iterdir()] == ["me.png"]


def test_json_has_the_standard_output_for_itself(server, here, capsys, monkeypatch):
    monkeypatch.setattr(run, "make_head", lambda *a: 0)
    arguments = ["--image", "me.png", "--config", f"{server}/good.yaml", "--json"]
    assert cli.main([*arguments, "--yes"]) == 0 and cli.main([*arguments, "--dry-run"]) == 0
    text = capsys.readouterr()
    assert text.out == "" and "latent_steps: 3" in text.err and "Run this? yes (--yes)" in text.err


def test_a_name_of_two_lines_adds_no_line_to_what_is_shown(server, here, capsys):
    assert cli.main(["--image", "me.png", "--config", f"{server}/lines.yaml", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "output  outputs/x<U+000A>device  none/me\n" in text and "\ndevice  none" not in text


def test_what_stages_would_do_is_shown():
    system = load_pipeline_config()[0].system
    assert describe_stages(system) == "restore 120 steps, guided by portrait-diffusion-hpdm-guidance (bundled)"
    system.guidance_type, system.guidance = "portrait-diffusion-sd-guidance", {"vae": "org/vae"}
    assert describe_stages(system).endswith("-sd-guidance (stable-diffusion-v1-5/stable-diffusion-v1-5, org/vae)")
    system.stages["restore"]["steps"] = 0
    assert describe_stages(system) == ""
    assert describe_stages(load_pipeline_config(find_config("portrait-init"))[0].system) == ""


def test_public_models_are_got_by_the_command_models_never_by_a_run(server, here, capsys, monkeypatch):
    pytest.importorskip("huggingface_hub")
    require = preflight.require
    large = ("diffusers", "pytorch_lightning")  # not needed to see what is missing, and slow to import
    monkeypatch.setattr(preflight, "require", lambda name, **more: None if name in large else require(name, **more))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    url = f"{server}/public.yaml?a&b"
    arguments = ["--image", "me.png", "--yes", "--config", url]
    assert cli.main(arguments) == 2
    assert "guidance with org/base, org/lines lacks 'offline: true'" in capsys.readouterr().err
    assert cli.main([*arguments, "system.guidance.offline=true"]) == 3
    assert f"Get the rest with: python launch_portrait.py models --config '{url}'" in capsys.readouterr().err
    asked = []
    answer = ("c0ffee", {"unet": 9}, "mit")
    monkeypatch.setattr("portrait_diffusion.models.remote_files", lambda model: asked.append(model.id) or answer)
    assert cli.main(["models", "--config", url]) == 2, "nobody can be asked here"
    assert asked == ["org/base", "org/lines"] and "Download 0.00 GB" in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ["me.png"]


@pytest.mark.parametrize(
    "system",
    [{"guidance_type": "portrait-diffusion-sd-guidance"},
     {"guidance_type": "portrait-diffusion-sd-guidance:portrait-diffusion-hpdm-guidance",
      "guidance": {"pretrained_model_name_or_path": "a/b", "offline": False}},
     {"guidance_type": "portrait-diffusion-hpdm-guidance", "guidance": {"pretrained_model_name_or_path": "bundled"},
      "extra_guidances": [{"type": "portrait-diffusion-hpdm-guidance",
                           "guidance": {"pretrained_model_name_or_path": "a/b", "vae": "c/d"}}]},
     {"guidance_type": "portrait-diffusion-hpdm-guidance",
      "guidance": {"pretrained_model_name_or_path": "a/b@refs/pr/1"}},
     {"guidance_type": "portrait-diffusion-hpdm-guidance", "guidance": {"pretrained_model_name_or_path": "gpt2"}},
     {"guidance_type": "portrait-diffusion-hpdm-guidance",
      "guidance": {"pretrained_model_name_or_path": ".", "controlnets": [{"path": "single"}]}}],
)  # fmt: skip
def test_no_guidance_of_a_shared_one_may_download(system, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text_encoder").mkdir()  # the folder is of a model in SD's shape
    with pytest.raises(UsageError, match="^theirs: the guidance with .* lacks 'offline: true'"):
        check_offline({"system": system}, "theirs")


@pytest.mark.parametrize("path", ["portrait", "portrait-12gb"])
def test_shipped_configurations_may_be_shared(path):
    check_offline(load_pipeline_config(ROOT / "configs" / f"{path}.yaml")[1], path)


@pytest.mark.parametrize("value", ["/etc/passwd", "C:\\x", "\\\\server\\share", "a/../../b", "..", "~/x", "~me/x", "~",
                                   "file:x", "link/x", "a\\..\\b", "x\0y"])  # fmt: skip
def test_paths_that_lead_out(tmp_path, value):
    (tmp_path / "link").symlink_to("/")
    assert list(outside_paths({"a": [{"b": value}]}, tmp_path)) == [("a[0].b", value)]


@pytest.mark.parametrize("value", ["models/mine", "user/repo@main", "portrait photo, white", "~5 minutes", "a..b", ""])
def test_other_texts_do_not(tmp_path, value):
    assert list(outside_paths({"a": value, "description": "/x"}, tmp_path)) == []


def test_there_is_no_answer_without_a_connection(monkeypatch):
    def fail(*arguments, **more):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests.Session, "get", fail)
    with pytest.raises(EnvironmentProblem, match="can't be fetched .no route."):
        remote.download("https://example.org/x.yaml")


def test_there_are_community_configurations():
    assert COMMUNITY and (ROOT / "configs" / "community" / "README.md").is_file()


@pytest.mark.parametrize("path", COMMUNITY, ids=lambda path: path.stem)
def test_community_configurations_are_fit_to_be_shared(path):
    config, plain = load_pipeline_config(path)
    check_paths(plain, path.name)
    raw = yaml.safe_load(path.read_text())
    assert config.description and path.read_text().startswith("# ")
    made = raw["system"]["made_with"]
    assert made["version"] and not raw.get("data", {}).get("image_path")
    assert not any(place in raw for place in RUN_KEYS)
    check_visible(path.read_text(encoding="utf-8"), path.name)


@pytest.mark.parametrize("path", COMMUNITY, ids=lambda path: path.stem)
def test_community_configurations_fit_the_weights_that_ship(path):
    """A run of one warns of nothing: when other weights ship, its `made_with` is made anew (README there)."""
    pipeline = PortraitPipeline.from_config(path)
    assert made_elsewhere(pipeline) == []
    weights = prior_weights(pipeline.config.system.prior)
    made, here = pipeline.config.system.made_with, made_with(pipeline.raw_config, weights)
    assert set(made["weights"]) == set(here["weights"]), "nothing is left out, which would not be compared"
    assert [model["id"] for model in made["models"]] == [model["id"] for model in here["models"]]


def test_the_communitys_example_is_the_readmes_better_run():
    """What its description says: the default configuration with the two settings of README.md."""
    path = ROOT / "configs" / "community" / "astronaut-best.yaml"
    command = next(line for line in (ROOT / "README.md").read_text().splitlines() if "--out outputs/best" in line)
    _, readmes = load_pipeline_config(None, [word for word in command.split() if word.startswith("system.")])
    _, shared = load_pipeline_config(path)
    del shared["system"]["made_with"], shared["name"], shared["description"], readmes["name"], readmes["description"]
    assert shared == readmes
