"""The documents: every command of the README is one that the real parsers and the real schema accept."""
import argparse
import re
import runpy
import shlex
import sys

import pytest
import yaml
from cli.cli_samples import PACKAGE, REPOSITORY
from portrait_diffusion import cli, host
from portrait_diffusion.settings import load_pipeline_config
from portrait_diffusion.shipped import find_config
from portrait_diffusion.systems.portrait import ExtraGuidance

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md",
             *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")))  # fmt: skip
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def launches() -> list[list[str]]:
    """Arguments of every launch_portrait.py command, in blocks and in running text."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    lines += re.findall(r"`(python launch_portrait\.py[^`]*)`", README)
    words = [shlex.split(line) for line in lines]
    return [line[2:] for line in words if line[:2] == ["python", "launch_portrait.py"] and len(line) > 2]


class Parsed(Exception):
    """Raised in place of the work once the arguments are understood."""


@pytest.fixture
def only_parse(monkeypatch):
    """Parsers do their work and then raise Parsed."""

    def then_stop(original):
        def parse(self, args=None, namespace=None):
            raise Parsed(original(self, args, namespace))

        return parse

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, then_stop(getattr(argparse.ArgumentParser, name)))


def test_the_readme_shows_every_kind_of_command():
    first = {words[0] for words in launches()}
    assert {"--image", "render", "doctor", "train-prior", "render-dataset", "train-matte", "train-hpdm"} <= first


@pytest.mark.parametrize("words", launches(), ids=" ".join)
def test_commands_are_understood(words, only_parse):
    if words == ["--version"]:
        return
    with pytest.raises(Parsed) as caught:
        cli.main(words)
    options = caught.value.args[0]
    if hasattr(options, "overrides"):
        load_pipeline_config(find_config(options.config), options.overrides)
        image = getattr(options, "image", None)
        assert image is None or (REPOSITORY / image).is_file()


def test_other_commands_of_the_readme_exist():
    lines = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    modules = [words[2] for words in lines if words[:2] == ["python", "-m"]]
    assert modules and all((PACKAGE.parent / f"{name.replace('.', '/')}.py").is_file() for name in modules)
    files = [words[words.index("-r") + 1] for words in lines if words[:2] == ["pip", "install"] and "-r" in words]
    assert files and all((REPOSITORY / name).is_file() for name in files)


def test_overrides_named_in_the_text_are_valid():
    found = re.findall(r"`((?:data|system|seed)[\w.]*=[^`]+)`", README)
    assert found
    load_pipeline_config(None, found)
    keys = re.findall(r"`(system\.[\w.]+)`", README)
    assert keys
    for key in keys:
        section, _ = load_pipeline_config()
        for part in key.split("."):
            section = getattr(section, part)


def test_the_python_example_is_valid_and_short():
    (example,) = blocks("python")
    compile(example, "README.md", "exec")
    assert len([line for line in example.splitlines() if line.strip()]) <= 5
    from portrait_diffusion.pipeline import PortraitPipeline
    from portrait_diffusion.result import PortraitResult

    for name in re.findall(r"PortraitPipeline\.(\w+)", example):
        assert hasattr(PortraitPipeline, name)
    assert hasattr(PortraitResult, "save") and hasattr(PortraitResult, "load") and "result.save(" in example


def test_the_example_for_the_host_names_registered_classes_and_valid_keys():
    (example,) = blocks("yaml")
    system = yaml.safe_load(example)["system"]
    for name in ("geometry", "renderer"):
        host.find(system[f"{name}_type"]).Config(**system[name])


def test_the_example_of_another_guidance_is_what_the_system_takes():
    (example,) = re.findall(r"^```\n(system:\n  extra_guidances:.*?)^```", README, re.MULTILINE | re.DOTALL)
    (extra,) = yaml.safe_load(example)["system"]["extra_guidances"]
    assert ExtraGuidance(**extra).stages == ["refine"] and extra["guidance"] and extra["prompt_processor"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    path = REPOSITORY / name
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    missing = [link for link in local if not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_name_no_machine_paths(name):
    assert not re.search(r"(?<!\w)/(work|tmp|root|home)/", (REPOSITORY / name).read_text(encoding="utf-8"))


def test_the_configuration_page_is_current(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = runpy.run_path(str(REPOSITORY / "docs" / "make_configuration.py"))
    assert script["main"](["--check"]) == 0, capsys.readouterr().err


def test_the_configuration_page_reads_both_kinds_of_documentation(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = runpy.run_path(str(REPOSITORY / "docs" / "make_configuration.py"))
    page = script["page"]()
    assert "| `size` | `512` | Side of the canonical crop, pixels. |" in page
    assert "| `hidden` | `64` | width of the decoder |" in page
    assert "## system.exporter.turntable" in page and "## system.inversion" in page


def test_the_benchmark_table_is_current(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = runpy.run_path(str(REPOSITORY / "benchmarks" / "make_tables.py"))
    assert script["main"](["--check"]) == 0, capsys.readouterr().err
