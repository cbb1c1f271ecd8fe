"""The page about the benchmark is made from its result files, and its commands are ones that exist."""
import argparse
import json
import re
import shlex
from pathlib import Path

import pytest
from portrait_diffusion import cli

from benchmark.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmark.md"


def test_the_page_is_current(capsys):
    assert load_script("benchmark_page").main(["--check"]) == 0, capsys.readouterr().err


def test_a_page_without_results_says_so_and_one_with_others_is_noticed(tmp_path, monkeypatch, capsys):
    script = load_script("benchmark_page")
    assert "No results yet" in script.generated(script.read_runs(tmp_path))
    page = tmp_path / "page.md"
    page.write_text(f"a\n{script.START}\nold\n{script.END}\nb\n")
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    assert script.main(["--check"]) == 1 and "out of date" in capsys.readouterr().err
    assert script.main([]) == 0 == script.main(["--check"])
    assert page.read_text().startswith("a\n") and "old" not in page.read_text()


def test_its_commands_are_understood(monkeypatch):
    class Parsed(Exception):
        pass

    original = argparse.ArgumentParser.parse_args

    def parse(self, args=None, namespace=None):
        raise Parsed(original(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    (block,) = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line)[2:] for line in block.splitlines() if "launch_portrait.py" in line]
    assert {words[0] for words in commands} == {"render-benchmark", "evaluate"}
    for words in commands:
        with pytest.raises(Parsed):
            cli.main(words)


def test_what_was_measured_once_is_cited_where_it_says_and_nothing_else_is_without_a_file():
    once = json.loads((ROOT / "benchmarks" / "results" / "measured_once.json").read_text(encoding="utf-8"))["entries"]
    cited = {}
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"measured once\]\([./]*benchmarks/results/measured_once\.json\): `([^`]+)`", text, re.I)
        cited |= dict.fromkeys(found, path.relative_to(ROOT).as_posix())
        assert not re.findall(r"by hand|no file", text), f"{path.name}: figures without a result file"
    assert cited == {name: entry["page"] for name, entry in once.items()}
