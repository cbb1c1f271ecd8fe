"""The README's table: made from the summaries, checked against them."""
import json

import pytest

from benchmark.scripts import load_script

make_tables = load_script("make_tables")
main_job = load_script("main_job")
SUMMARY = {
    "name": "first", "photos": 3, "ok": 2, "refused": 1, "failed": 0, "jobs": 2, "threads": 4,
    "seconds_median": 41.26, "peak_host_gb_max": 1.34, "devices": ["CPU a|b"], "commits": ["0123456789+changes"],
    "metrics": {
        "psnr_db": {"mean": 20.04, "median": 1.0, "count": 2}, "janus_rate": {"mean": 0.5, "median": 1.0, "count": 1},
        "sface_front": {"mean": None, "median": None, "count": 0},
    },
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """A README with markers and a folder with one summary."""
    (tmp_path / "results" / "first").mkdir(parents=True)
    (tmp_path / "results" / "first" / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "README.md").write_text(f"# Title\n{make_tables.START}\nold\n{make_tables.END}\nrest\n")
    return tmp_path


def rows(table: str) -> list[dict]:
    """The table's rows by heading."""
    lines = [line for line in table.replace("\\|", "/").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    return [dict(zip(cells[0], row)) for row in cells[2:]]


def test_a_row_shows_quality_time_and_memory():
    (row,) = rows(make_tables.make_table([SUMMARY]))
    assert row["run"] == "first" and (row["photos"], row["refused"], row["failed"]) == ("3", "1", "0")
    assert row["PSNR dB ↑"] == "20.0" and row["SFace 0° ↑"] == "–"
    assert row["Janus rate ↓"] == "0.500 (1/2)"  # how many photos the mean covers
    assert row["wall s ↓"] == "41.3" and row["peak GB ↓"] == "1.3" and row["jobs × threads"] == "2 × 4"
    assert row["device"] == "CPU a/b" and row["commit"] == "01234567+changes"


def test_unknown_costs_are_dashes():
    (row,) = rows(make_tables.make_table([SUMMARY | {"seconds_median": None, "peak_host_gb_max": None}]))
    assert row["wall s ↓"] == row["peak GB ↓"] == "–"


def test_the_table_is_made_and_checked(results, capsys):
    readme = results / "README.md"
    arguments = ["--readme", str(readme), "--results", str(results / "results")]
    assert make_tables.main([*arguments, "--check"]) == 1
    assert make_tables.main(arguments) == 0
    assert make_tables.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert "old" not in text and text.startswith("# Title\n") and text.endswith("rest\n")
    assert "| first |" in text and "without export" in text
    readme.write_text(text.replace("| first | 3 |", "| first | 4 |"))
    assert make_tables.main([*arguments, "--check"]) == 1
    readme.write_text("no markers")
    assert make_tables.main(arguments) == 2


def test_without_results_there_is_no_table():
    assert make_tables.make_table([]) == "No results yet: run `benchmarks/photos.py`."


@pytest.mark.parametrize("script", ["make_tables", "prior_results"])
def test_the_shipped_documents_match_the_result_files(script):
    assert load_script(script).main(["--check"]) == 0


def test_the_costs_of_the_main_job_are_a_table(tmp_path):
    result = {
        "photo": "me.png", "cores": 2, "device": {"name": "a CPU"},
        "rows": [
            {"config": "portrait-mini", "seconds": 200.4, "first look s": 12.6, "peak GB": 1.26},
            {"config": "portrait-fast", "seconds": 60.0, "first look s": None, "peak GB": 1.0},
        ],
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(result))
    (tmp_path / "README.md").write_text(f"{main_job.START}\nold\n{main_job.END}\n")
    arguments = ["--out", str(tmp_path / "job.json"), "--readme", str(tmp_path / "README.md")]
    assert main_job.main([*arguments, "--check"]) == 1 and main_job.main([*arguments, "--table"]) == 0
    assert main_job.main([*arguments, "--check"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "| `portrait-mini` | 13 | 200 | 1.3 |" in text and "| `portrait-fast` | – | 60 | 1.0 |" in text


@pytest.mark.slow
def test_the_main_job_is_measured_from_outside(tmp_path):
    (tmp_path / "README.md").write_text(f"{main_job.START}\n{main_job.END}\n")
    tiny = ["system.inversion.latent_steps=2", "system.inversion.detail_steps=2", "system.exporter.render_size=32",
            "system.exporter.turntable.frames=3", "system.exporter.turntable.height=32",
            "system.exporter.mesh.resolution=48", "system.exporter.mesh.target_faces=800",
            "system.exporter.bake.texture_size=64"]  # fmt: skip
    out = tmp_path / "job.json"
    arguments = ["--configs", "portrait-mini", "--out", str(out), "--readme", str(tmp_path / "README.md"), *tiny]
    assert main_job.main(arguments) == 0
    result = json.loads(out.read_text())
    (row,) = result["rows"]
    assert 0 < row["first look s"] < row["seconds"] and 0.2 < row["peak GB"] < 8
    assert str(tmp_path) not in result["command"] and "portrait-mini" in (tmp_path / "README.md").read_text()


def test_the_readmes_costs_are_current():
    assert main_job.main(["--check"]) == 0
