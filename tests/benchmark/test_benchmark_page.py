"""The page about the benchmark is made from its result files, and its commands are ones that exist."""
import argparse
import re
import shlex
from pathlib import Path

import pytest
from portrait_diffusion import cli

from benchmark.scripts import load_script

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmark.md"


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
