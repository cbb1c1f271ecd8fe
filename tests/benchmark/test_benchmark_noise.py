"""The benchmarks of noise: right on known cases, and each command runs in a tiny form."""
import json
import math

import pytest
import torch
from portrait_diffusion.ops.cameras import get_rays, orbit_c2w

from benchmark.scripts import load_script

noise_head, noise_whiteness, noise_drift, noise_pictures, noise_page, noise_overhead = (
    load_script(f"noise_{name}") for name in ("head", "whiteness", "drift", "pictures", "page", "overhead")
)
SIZE, FACTOR, DISTANCE = 16, 4, 2.7
TINY = ("--latents", "16", "--threads", str(torch.get_num_threads()))  # threads are those of the other tests, too


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plane(shift):
    """Two views of a plane parallel to the pictures; the second stands `shift` latent pixels further to the left."""
    c2w, fovy = orbit_c2w(torch.zeros(2), torch.zeros(2)), torch.full((2,), math.radians(14.0))
    pixel = 2 * math.tan(float(fovy[0]) / 2) * DISTANCE / SIZE
    c2w[1, :3, 3] -= shift * pixel * c2w[1, :3, 0]

    def depth(size):
        rays_d = get_rays(c2w, fovy, size, size)[1]
        return DISTANCE / -(rays_d * c2w[:, None, None, :3, 2]).sum(-1)

    fine = depth(SIZE * FACTOR)
    return noise_head.Views(c2w, fovy, depth(SIZE), fine, fine[..., None].expand(-1, -1, -1, 3))


def whiteness(noise):
    region = torch.ones(noise.shape[1:], dtype=torch.bool)
    region[:4] = False
    statistic = noise_whiteness.Whiteness(region)
    for part in noise.split(100):
        statistic.add(part, generator(1))
    return statistic.result()


def test_independent_numbers_are_white():
    """400 pictures of 28 x 32 pixels, 4 sigma each; the lowest band as in tests/noise/test_whiteness.py."""
    found = whiteness(torch.randn(400, 32, 32, generator=generator()))
    n = 400 * found["pixels"]
    assert found["pixels"] == 28 * 32 and found["ks values"] == 400 and len(found["spectrum"]) == 8
    assert abs(found["mean"]) < 4 / math.sqrt(n) and abs(found["std"] - 1) < 4 / math.sqrt(2 * n)
    assert max(abs(found["horizontal"]), abs(found["vertical"])) < 4 / math.sqrt(0.95 * n)
    assert found["spectrum off by"] < 4 / math.sqrt(10 * 400 * 28 / 32) and found["ks p"] > 1e-4


def test_mean_of_two_neighbours_is_found_out():
    """Closed forms: standard deviation sqrt(1/2), horizontal correlation 1/2, vertical 0."""
    x = torch.randn(400, 32, 33, generator=generator())
    found = whiteness((x[..., 1:] + x[..., :-1]) / 2)
    assert found["std"] == pytest.approx(0.5**0.5, abs=0.01)
    assert found["horizontal"] == pytest.approx(0.5, abs=0.01) and abs(found["vertical"]) < 0.01
    assert found["spectrum off by"] > 0.3
    assert found["spectrum"][0] > found["spectrum"][-1], "what is left is of low frequency"


def test_repeated_numbers_are_found_by_neighbours_and_spectrum_alone():
    x = torch.randn(400, 32, 16, generator=generator()).repeat_interleave(2, dim=2)
    found = whiteness(x)
    assert found["std"] == pytest.approx(1, abs=0.01) and found["ks p"] > 1e-4
    assert found["horizontal"] == pytest.approx(16 / 31, abs=0.01), "16 of 31 neighbours in a row are the same number"
    assert found["spectrum off by"] > 0.3


def test_a_drift_and_a_wrong_level_are_found():
    x = torch.randn(400, 32, 32, generator=generator())
    assert whiteness(x + 0.1)["mean"] == pytest.approx(0.1, abs=0.01)
    assert whiteness(1.1 * x)["std"] == pytest.approx(1.1, abs=0.01) and whiteness(1.5 * x)["ks p"] < 1e-3


@pytest.mark.parametrize("shift, exact", [(0.0, 1.0), (1.0, 1.0), (0.5, 0.5**0.5), (2.25, (0.75**2 + 0.25**2) ** 0.5)])
def test_what_an_exact_integral_has_is_what_transport_has_on_a_plane(shift, exact):
    """Shifted by s of a pixel, a pixel lies on two with shares 1 - s and s: sqrt((1 - s)^2 + s^2). 4 sigma."""
    views = plane(shift)
    lookup = noise_head.Lookup(views, 0, 1)
    assert int(lookup.seen.sum()) == SIZE * (SIZE - math.ceil(shift)) == len(lookup.pixels.members)
    assert lookup.pixels.exact() == pytest.approx(exact, abs=1e-3)
    table = noise_whiteness.measure(views, (0, 1), 25, pairs=((0, 1),), methods=("transport", "bilinear"))
    found = table["transport"]["0 to 1"]["same surface"]
    assert found["pixels"]["of exact"] == pytest.approx(1, abs=4 / exact / math.sqrt(100 * found["pixels"]["places"]))
    # of a patch of 8 pixels 7 stay and one is shared out, in one direction
    patches = found["patches"]
    assert patches["correlation"] > ((7 + exact**2) / 8) ** 0.5 - 4 / math.sqrt(100 * patches["places"])
    copied = table["bilinear"]["0 to 1"]
    assert copied["same surface"]["pixels"]["correlation"] == pytest.approx(1, abs=1e-3)
    assert copied["white"]["carried"]["std"] == pytest.approx(exact, abs=0.02)


def test_places_that_only_one_view_sees_are_left_out():
    views = plane(0.0)
    views.fine[0, : 4 * FACTOR] = 0  # the source shows nothing there
    views.fine[0, 8 * FACTOR :, : 8 * FACTOR] -= 0.1  # something stands before it
    lookup = noise_head.Lookup(views, 0, 1)
    seen = torch.ones(SIZE, SIZE, dtype=torch.bool)
    seen[:4], seen[8:, :8] = False, False
    assert torch.equal(lookup.seen, seen)
    fresh = torch.full((1, 2, SIZE, SIZE), 7.0)
    warped = lookup.warp(torch.zeros(1, 2, SIZE, SIZE), "bilinear", fresh)
    assert torch.equal(warped[0, 0] == 0, seen) and torch.equal(warped[0, 0] == 7, ~seen)


def test_the_summary_of_selection_counts_drift():
    """Noise that is pushed by d along a direction of length 1 adds d^2 to its power, all in one band."""
    solid = torch.ones(6, SIZE, SIZE, dtype=torch.bool)
    wanted = noise_drift.direction(solid, 4)
    torch.testing.assert_close(wanted.flatten(1).norm(dim=1), torch.ones(6))
    torch.testing.assert_close(wanted.sum(dim=(2, 3)), torch.zeros(6, 4), atol=1e-4, rtol=0)
    white = noise_drift.summary([torch.zeros(6)], [torch.randn(6, 4, SIZE, SIZE, generator=generator())])
    pushed = torch.randn(6, 4, SIZE, SIZE, generator=generator()) + 8 * wanted
    found = noise_drift.summary([torch.full((6,), 8.0)], [pushed])
    assert found["largest drift"] == 8 and found["spectrum off by"] > 0.5 > white["spectrum off by"]
    assert max(range(8), key=found["spectrum"].__getitem__) <= 1


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the commands write in a tiny form."""
    folder = tmp_path_factory.mktemp("noise")
    out = folder / "noise_whiteness.json"
    assert noise_whiteness.main(["--out", str(out), "--draws", "2", *TINY]) == 0
    drift = folder / "noise_drift.json"
    assert noise_drift.main(["--out", str(drift), "--rounds", "12", "--spacing", "90", *TINY]) == 0
    return folder


def test_the_commands_write_their_results(results):
    noise = json.loads((results / "noise_whiteness.json").read_text())
    assert set(noise["methods"]) == set(noise_whiteness.METHODS) and noise["draws"] == 2
    found = noise["methods"]["transport"]["0 to 0"]
    assert found["same surface"]["pixels"]["correlation"] > 0.99, "the same view"
    assert noise["methods"]["transport"]["0 to 90"]["covered"] < noise["methods"]["field"]["0 to 90"]["covered"]
    assert all(ms["transport"] > 0 and ms["field"] > 0 for ms in noise["ms"].values())
    drift = json.loads((results / "noise_drift.json").read_text())
    assert drift["anchors"] == 4 and drift["never given up"]["drift after rounds"]["12"] > 0.5
    noise["ms"]["another machine"] = {"transport": 1.0, "field": 2.0}
    again = results / "again.json"
    again.write_text(json.dumps(noise))
    assert noise_whiteness.main(["--out", str(again), *TINY, "--only-time"]) == 0
    timed = json.loads(again.read_text())
    assert timed["ms"]["another machine"] == {"transport": 1.0, "field": 2.0} and timed["methods"] == noise["methods"]


def test_the_picture_and_the_page_are_made_from_them(results, tmp_path, monkeypatch):
    picture = tmp_path / "noise.png"
    command = ["--results", str(results / "noise_whiteness.json"), "--out", str(picture)]
    assert noise_pictures.main(command) == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    copy = tmp_path / "noise.md"
    copy.write_text(noise_page.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(noise_page, "PAGE", copy)
    assert noise_page.main(["--check"]) == 0
    cost = json.loads((noise_page.RESULTS / "noise_overhead.json").read_text(encoding="utf-8"))
    (results / "noise_overhead.json").write_text(json.dumps(cost), encoding="utf-8")
    monkeypatch.setattr(noise_page, "RESULTS", results)
    assert noise_page.main(["--check"]) == 1
    assert noise_page.main([]) == 0 and noise_page.main(["--check"]) == 0


def test_the_shipped_page_matches_the_results():
    assert noise_page.main(["--check"]) == 0
    assert (noise_page.ROOT / "docs" / "images" / "noise.png").stat().st_size < 600_000


def test_comparing_costs_the_rows_that_it_says(tmp_path, monkeypatch):
    """Two views, two guidance rows each; a comparison doubles them."""
    pytest.importorskip("diffusers")
    from portrait_diffusion.guidance.hpdm.model import build_mini

    tiny = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=32)
    monkeypatch.setattr(noise_overhead, "build_mini", lambda image_size: tiny)
    monkeypatch.setattr(noise_overhead, "EVERY", (1, 2))
    out = tmp_path / "overhead.json"
    assert noise_overhead.main(["--out", str(out), "--steps", "2", "--size", "32", "--rounds", "2"]) == 0
    found = json.loads(out.read_text())["samplers"]
    plain = found["independent"]["rows a step"]
    assert found["MV-NRS, compares every 1"]["rows a step"] == 2 * plain
    assert found["MV-NRS, compares every 2"]["rows a step"] == 1.5 * plain
    assert all(numbers["ms a step"] > 0 for numbers in found.values())
