"""The tables of docs/stages.md are those of the records, and say what the records say."""
from benchmark.scripts import load_script


def head(rung: str, item: int, stlpips: float, data: str = "photos") -> dict:
    """A record with every metric of photos."""
    metrics = {"photo_psnr_db": 30.0 + item, "photo_stlpips_alex": stlpips, "sface_front": 0.9, "sface_plus30": 0.8,
               "sface_minus30": 0.8, "self_warp_lpips_30": 0.03, "janus_rate": 0.0}  # fmt: skip
    return {"data": data, "name": str(item), "rung": rung, "seed": 0, "status": "ok", "metrics": metrics}


def test_the_page_is_current(capsys):
    assert load_script("stages_page").main(["--check"]) == 0, capsys.readouterr().err


def test_differences_are_paired():
    """Items differ by far more than rungs do: the paired interval does not show it."""
    script = load_script("stages_page")
    records = [head(rung, k, 0.1 * k - less) for rung, less in (("init", 0.0), ("refined", 0.01)) for k in range(8)]
    table = script.tables(records)
    assert "| 8 photos | photo's view, dB ↑ | its ST-LPIPS ↓ |" in table
    assert "| init | 33.5 | 0.3500 |" in table
    assert "| refined − init | +0.0 [+0.0, +0.0] | −0.0100 [−0.0100, −0.0100] |" in table
    assert "restored" not in table and "open" not in table


def test_a_row_of_what_the_true_heads_score_themselves():
    """Where they score anything: without a truth, or without such a metric, there is no such row and no column."""
    script = load_script("stages_page")
    records = [head("init", k, 0.1, "test") for k in range(8)]
    for k, record in enumerate(records):
        record["metrics"]["self_warp_lpips_30_truth"] = 0.01 * k
    header, _, init, true = script.tables(records).splitlines()
    assert header == "| 8 of `test` | self-warp ↓ | to the photo: +30° ↑ | −30° ↑ | photo's view, dB ↑ | Janus ↓ |"
    assert init == "| init | 0.0300 | 0.800 | 0.800 | 33.5 | 0.000 |"
    assert true == "| *the true heads* | 0.0350 |  |  |  |  |"
    assert "true heads" not in script.tables([head("init", k, 0.1) for k in range(8)])


def test_a_heading_for_each_kind_of_data_and_none_without_records(tmp_path, monkeypatch, capsys):
    script = load_script("stages_page")
    page = tmp_path / "page.md"
    page.write_text(f"a\n{script.START}\nold\n{script.END}\nb\n")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script, "RECORDS", tmp_path / "none.jsonl")
    assert script.main(["--check"]) == 1 and "page.md is out of date" in capsys.readouterr().err
    assert script.main([]) == 0 == script.main(["--check"])
    assert "No results yet" in page.read_text() and "old" not in page.read_text()
