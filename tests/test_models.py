"""Public models: which a configuration names, what is cached, asking before a download, clear refusals."""
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from portrait_diffusion import models
from portrait_diffusion.errors import EnvironmentProblem
from portrait_diffusion.export.made_with import MODEL, differences, made_with, pin_revisions
from portrait_diffusion.guidance import hpdm_guidance
from portrait_diffusion.models import NEEDED, PublicModel, check_cached, get_models, public_models

hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import constants, file_download, hf_api  # noqa: E402

COMMIT = "c0ffee" + "0" * 34
FILES = {
    "config.json": b"{}", "diffusion_pytorch_model.safetensors": b"weights" * 100, "big.ckpt": b"never" * 1000,
}  # fmt: skip
SYSTEM = {
    "guidance_type": "portrait-diffusion-hpdm-guidance",
    "guidance": {"pretrained_model_name_or_path": "some/folder-model", "controlnets": [{"path": "org/control"}],
                 "vae": "org/control@abc"},
    "extra_guidances": [{"type": "another-guidance", "guidance": {"pretrained_model_name_or_path": "not/ours"}}],
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub that a download needs, for one model."""

    asked: list = []

    def answer(self, body=b"", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        Hub.asked.append(path)
        if path.startswith("/api/models/org/control"):
            files = [{"rfilename": n, "size": len(b), "blobId": "x"} for n, b in FILES.items()]
            tree = [{"type": "file", "path": n, "size": len(b), "oid": "x"} for n, b in FILES.items()]
            info = {"id": "org/control", "sha": COMMIT, "siblings": files, "tags": ["license:openrail"]}
            self.answer(json.dumps(tree if "/tree/" in path else info).encode(), Content_Type="application/json")
        elif path.startswith("/org/control/resolve/") and path.split("/", 5)[-1] in FILES:
            body = FILES[path.split("/", 5)[-1]]
            self.answer(body, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(body).hexdigest()}"')
        else:
            self.answer(json.dumps({"error": "Repository not found"}).encode(), 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def local_hub(monkeypatch, tmp_path):
    """The hub's library talks to a server on this machine and keeps its files in a folder of the test."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    Hub.asked = []
    for name, value in {"ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": False,
                        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
                        "HF_HUB_DISABLE_XET": True}.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    for module in (hf_api, file_download):
        for name in ("HF_HUB_CACHE", "ENDPOINT"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(constants, name))
    monkeypatch.setattr(hub.HfApi, "__init__", lambda self, *a, **k: _with_endpoint(self, address))
    yield address
    server.shutdown()


def _with_endpoint(api, address):
    for name, value in {"endpoint": address, "token": None, "library_name": None, "library_version": None,
                        "user_agent": None, "headers": None}.items():  # fmt: skip
        setattr(api, name, value)


def test_only_our_guidances_hub_ids_count(tmp_path, monkeypatch):
    found = public_models(SYSTEM)
    assert [(m.name, m.revision, m.role) for m in found] == [
        ("some/folder-model", "", "base"), ("org/control", "", "controlnet"), ("org/control", "abc", "vae"),
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "folder-model" / "text_encoder").mkdir(parents=True)
    assert [m.name for m in public_models(SYSTEM)] == ["org/control", "org/control"], "a folder is no hub id"
    assert public_models({"guidance_type": "portrait-diffusion-hpdm-guidance", "guidance": {}}) == []
    assert public_models({}) == []


def test_a_model_that_a_guidance_takes_unasked_and_one_of_a_mixed_class_are_seen():
    assert [model.id for model in public_models({"guidance_type": "portrait-diffusion-sd-guidance"})] == [
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    ]
    mixed = {"guidance_type": "another:portrait-diffusion-hpdm-guidance", "guidance": {MODEL: "org/base"}}
    assert [model.id for model in public_models(mixed)] == ["org/base"]
    extra = {"extra_guidances": [{"type": "portrait-diffusion-sd-guidance", "guidance": {"vae": "org/vae"}}]}
    assert [model.role for model in public_models(extra)] == ["base", "vae"]


def test_models_of_our_own_need_no_parts_that_a_configuration_still_names(tmp_path):
    assert public_models(SYSTEM)
    for model in ("bundled", str(tmp_path)):
        guidance = {**SYSTEM["guidance"], "pretrained_model_name_or_path": model}
        assert public_models({**SYSTEM, "guidance": guidance}) == []


def test_a_run_says_what_is_missing_and_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="Not in the local cache: .*org/control.* models --config mine.yaml"):
        check_cached(SYSTEM, "mine.yaml")
    with pytest.raises(EnvironmentProblem, match="--config 'x; rm -rf me' "):
        check_cached(SYSTEM, "x; rm -rf me")


def test_it_asks_before_it_downloads_and_brings_only_what_is_needed(local_hub):
    guidance = {"controlnets": [{"path": "org/control"}], "pretrained_model_name_or_path": ""}
    system = {"guidance_type": "portrait-diffusion-hpdm-guidance", "guidance": guidance}
    said, asked = [], []

    def no(question):
        asked.append(question)
        return False

    assert get_models(system, said.append, no) is False
    assert "0.00 GB in 2 files, revision c0ffee000000, licence openrail" in said[0]
    assert "Download" in asked[0] and not any("resolve" in path for path in Hub.asked), "nothing before the answer"
    assert get_models(system, said.append, lambda question: True) is True
    (model,) = public_models(system)
    assert model.is_cached() and not any("big.ckpt" in path for path in Hub.asked if "resolve" in path)
    check_cached(system)
    made = made_with({"system": system})
    weights = hashlib.sha256(FILES["diffusion_pytorch_model.safetensors"]).hexdigest()
    assert made["models"] == [
        {"id": "org/control", "revision": COMMIT, "sha256": {"diffusion_pytorch_model.safetensors": weights}}
    ]
    config = {"system": system}
    pin_revisions(config, made)
    assert system["guidance"]["controlnets"][0]["path"] == f"org/control@{COMMIT}"
    (pinned,) = public_models(system)
    assert pinned.is_cached() and get_models(system, said.append, no) is True


def test_unknown_and_incomplete_models_are_named(local_hub):
    with pytest.raises(EnvironmentProblem, match="The hub does not tell about no/such"):
        models.remote_files(PublicModel("no/such", "", "vae"))
    with pytest.raises(EnvironmentProblem, match="org/control has no model_index.json, unet/config.json"):
        models.remote_files(PublicModel("org/control", "", "base"))
    assert "safetensors" in " ".join(NEEDED["base"]) and "bin" not in " ".join(NEEDED["base"])


def test_differences_are_told_in_words(tmp_path):
    weights = tmp_path / "prior.safetensors"
    weights.write_bytes(b"one")
    made = made_with({"system": {}}, {"prior": weights})
    config = {"system": {"made_with": made}}
    assert differences(config, {"prior": weights}) == [] == differences({"system": {}}, {"prior": weights})
    weights.write_bytes(b"two")
    made["version"] = "99.0"
    first, second = differences(config, {"prior": weights})
    assert "made with portrait-diffusion 99.0, this is" in first and "prior weights are not those" in second


@pytest.mark.parametrize("name", ["bundled", "mine"])
def test_so_are_those_of_models_in_folders_the_shipped_one_included(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    (folder / "unet").mkdir(parents=True)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"one")
    monkeypatch.setattr(hpdm_guidance, "BUNDLED", tmp_path / "bundled")
    guidance = {"pretrained_model_name_or_path": "bundled" if name == "bundled" else str(folder)}
    config = {"system": {"guidance_type": "portrait-diffusion-hpdm-guidance", "guidance": guidance}}
    made = made_with(config)
    hashes = {"unet/diffusion_pytorch_model.safetensors": hashlib.sha256(b"one").hexdigest()}
    assert made["models"] == [{"id": name, "sha256": hashes}]
    config["system"]["made_with"] = made
    assert differences(config, {}) == []
    weights.write_bytes(b"two")
    assert differences(config, {}) == [f"its model '{name}' is not the one of that name here: the head will differ"]
    for odd in ([], "text", [1, {}], None):
        config["system"]["made_with"] = {**made, "models": odd}
        assert differences(config, {}) == []
