"""Numbers, tables, plots and pages of a run whose results are known."""
import json
import re

import numpy as np
import pytest
import torch
from portrait_diffusion.benchmark import summary, tables
from portrait_diffusion.benchmark.gallery import write_gallery
from portrait_diffusion.benchmark.ladder import Rung
from portrait_diffusion.benchmark.plots import write_plots
from portrait_diffusion.benchmark.records import Item
from portrait_diffusion.errors import UsageError
from portrait_diffusion.result import save_png

RUNGS = [Rung("init", "prior", "", {}), Rung("better", "a part", "init", {}), Rung("noise", "nothing", "better", {})]
COST = {"seconds": 10.0, "denoiser_rows": 5, "peak_host_gb": 1.5, "peak_device_gb": None}


def record(name, rung, seed=0, data="test", status="ok", **metrics):
    base = {"data": data, "name": str(name), "rung": rung, "seed": seed, "status": status}
    base["reasons"] = {"clip_i": "none"}
    return base | ({"metrics": metrics, **COST} if status == "ok" else {"reason": "No face."})


def lpips(value):
    return {f"stlpips_alex.{name}": value for name in ("input", "front", "side", "profile", "back")}


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    out = []
    for k in range(16):
        level = 0.1 + 0.02 * k
        for seed in (0, 1):
            wobble = 0.001 * rng.normal(size=3)
            for rung, shift in (("init", 0.0), ("better", -0.03), ("noise", -0.03)):
                value = level + shift + wobble[["init", "better", "noise"].index(rung)]
                chamfer = 5 + 0.1 * k
                out.append(record(k, rung, seed, **lpips(value), chamfer=chamfer, clip_i=None))
    return out


def test_unseen_is_the_mean_of_three_bins_or_missing():
    out = summary.with_unseen({"m.side": 1.0, "m.profile": 2.0, "m.back": 6.0, "n.side": 1.0, "n.profile": None,
                               "n.back": 1.0, "sface.back": None})  # fmt: skip
    assert out["m.unseen"] == 3.0 and out["n.unseen"] is None and "sface.unseen" not in out


def test_seeds_are_averaged_before_subjects(records):
    few = [record(0, "init", 0, a=1.0), record(0, "init", 1, a=3.0), record(1, "init", a=10.0)]
    few += [record(2, "init", a=None), record(3, "init", status="refused")]
    items = summary.by_item(summary.heads_of(few, "test", "init"))
    assert items["a"] == {"0": 2.0, "1": 10.0} and items["seconds"] == {"0": 10.0, "1": 10.0, "2": 10.0}
    numbers = summary.rung_numbers(records, "test", "init")
    assert (numbers["heads"], numbers["ok"], numbers["refused"]) == (32, 32, 0)
    low, mean, high, count = numbers["numbers"]["chamfer"]
    assert mean == pytest.approx(5.75) and low < mean < high and count == 16
    assert "clip_i" not in numbers["numbers"], "missing is not zero"


def test_a_true_difference_is_shown_and_none_is_not(records):
    found = summary.comparisons(records, "test", [("better", "init"), ("noise", "better")])
    table = {(e["rung"], e["metric"]): e for e in found}
    true, none = table["better", "stlpips_alex.unseen"], table["noise", "stlpips_alex.unseen"]
    assert true["shown"] == "better" and true["difference"] == pytest.approx(-0.03, abs=0.002) and true["items"] == 16
    assert none["shown"] == "no difference shown" and none["low"] < 0 < none["high"]
    same = table["better", "chamfer"]
    assert same["p"] == 1 and same["difference"] == 0 and same["shown"] == "no difference shown"
    assert all(e["p_holm"] >= e["p"] for e in found)
    (back,) = [e for e in summary.comparisons(records, "test", [("init", "better")]) if "alex" in e["metric"]]
    assert back["shown"] == "worse"


def test_only_items_that_both_have_are_compared():
    few = [record(0, "init", **lpips(0.2)), record(1, "init", **lpips(0.3)), record(0, "better", **lpips(0.1))]
    assert summary.comparisons(few, "test", [("better", "init")]) == []
    more = [*few, record(1, "better", **lpips(0.1))]
    entry = summary.comparisons(more, "test", [("better", "init")])[0]
    assert entry["shown"] == "too few items" and entry["low"] is None and entry["difference"] == pytest.approx(-0.15)
    assert summary.rung_numbers(more, "test", "init")["numbers"]["stlpips_alex.unseen"][::2] == [None, None]


def test_only_seeds_that_both_have_are_compared():
    """Seed 1 is worth ten more in both rungs, and one rung lacks it for some: that is no difference of the rungs."""
    both = [(k, s) for k in range(6) for s in (0, 1)]
    records = [record(str(k), "init", s, chamfer=float(k + 10 * s)) for k, s in both]
    records += [record(str(k), "full", s, chamfer=float(k + 10 * s)) for k, s in both if s == 0 or k > 3]
    found = next(c for c in summary.comparisons(records, "test", [("full", "init")]) if c["metric"] == "chamfer")
    assert found["items"] == 6 and found["difference"] == 0


def test_the_frechet_distance_is_missing_without_features(tmp_path):
    items = [Item("test", "0"), Item("test", "1")]
    assert summary.frechet(tmp_path, items, "init", [0]) is None
    for item in items:
        folder = tmp_path / "renders" / item.key
        folder.mkdir(parents=True)
        features = np.random.default_rng(int(item.name)).normal(size=(6, 4)).astype(np.float16)
        np.savez(folder / "truth.npz", features=features)
        np.savez(folder / "init-s0.npz", features=features + np.float16(2))
    assert summary.frechet(tmp_path, items, "init", [0]) == pytest.approx(16, rel=1e-2)
    assert summary.frechet(tmp_path, items, "init", [0, 1]) is None


@pytest.fixture
def whole(records):
    photos = [record(f"{k}.jpg", "init", data="photos", photo_psnr_db=30.0 + k, janus_rate=0.0) for k in range(3)]
    photos += [record(f"{k}.jpg", "better", data="photos", photo_psnr_db=31.0 + k) for k in range(3)]
    photos.append(record("odd.jpg", "init", data="photos", status="refused"))
    data = summary.summarise([*records, *photos], RUNGS, {"full": "No HPDM."})
    facts = {"profile": "quick", "seeds": [0], "rows": 48, "size": 128, "scope": {}, "set": "abc", "devices": ["CPU"],
             "versions": {"torch": "2"}, "commits": ["0123456789+changes"], "command": "python x"}  # fmt: skip
    return {**facts, "rungs": {r.name: {} for r in RUNGS}, "not_run": {"full": "No HPDM."}, "data": data}


def test_the_page_holds_what_was_measured_what_was_not_and_why(whole):
    page = tables.page(whole)
    assert re.search(r"\| better − init \| ST-LPIPS unseen ↓ \| 16 \| -0\.0(30|29)", page)
    assert re.search(r"\| init \| 4 \| 1 \|", page), "refusals stay in the table"
    assert "| full | No HPDM. |" in page and "| clip_i | none |" in page
    assert "01234567+changes" in page and "Kinds of data side by side: init" in page
    assert json.loads(json.dumps(whole["data"]))["photos"]["items"] == 4
    with pytest.raises(UsageError, match="no results"):
        summary.summarise([], RUNGS, {})


def test_plots_are_written_and_do_not_need_comparisons(whole, tmp_path):
    pytest.importorskip("matplotlib")
    names = {path.name for path in write_plots(whole, tmp_path, "x-")}
    assert names == {"x-test-sides.png", "x-test-differences.png", "x-photos-differences.png"}
    assert all((tmp_path / name).stat().st_size > 5000 for name in names)


def test_the_gallery_shows_every_rung_with_its_numbers_and_loads_nothing(tmp_path, records):
    folder = tmp_path / "renders" / "test-0"
    for name in ("input", "truth", "init-s0", "better-s0"):
        save_png(torch.rand(8, 80, 3), folder / f"{name}.png")
    photo = record("<b>.jpg", "init", data="photos", status="refused")
    items = [Item("test", "0"), Item("photos", "<b>.jpg"), Item("test", "99")]
    index = write_gallery(tmp_path, items, RUNGS, [*records, photo]).read_text()
    assert "test-0.html" in index and "test-99" not in index and "&lt;b&gt;.jpg" in index
    page = (tmp_path / "gallery" / "test-0.html").read_text()
    assert page.count('<img class="strip"') == 3 and page.count("<h2>") == 4, "truth, three rungs, one without picture"
    assert page.count("ST-LPIPS unseen</span> 0.") == 3 and "<div>180°</div>" in page
    refused = (tmp_path / "gallery" / "photos-<b>.html").read_text()
    assert "refused: No face." in refused and "<b>" not in refused
    assert not re.search(r'(?:src|href)="(?!data:|index\.html|test-0)[^"]*//', page + refused)
