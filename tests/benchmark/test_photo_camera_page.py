"""benchmarks/photo_camera.py: the table of docs/priors.md comes from its result file; signs of the errors."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_CROP
from portrait_diffusion.ops.similarity import apply
from portrait_diffusion.photo.camera_estimate import CameraEstimate

from benchmark.scripts import load_script


def test_the_page_is_current(capsys):
    assert load_script("photo_camera").main(["--check"]) == 0


def test_told_is_bias_and_spread():
    script = load_script("photo_camera")
    found = script.told(np.array([[1.0, 0, 0, 0, 0], [-1.0, 0, 2.0, 0, 0]]))
    assert found["azimuth_deg"] == {"mean": 0.0, "rms": 1.0}
    assert found["size_percent"] == {"mean": 1.0, "rms": pytest.approx(1.414, abs=1e-3)}


def test_a_table_and_its_check(tmp_path):
    script = load_script("photo_camera")
    numbers = {name: {"mean": -1.04, "rms": 2.0} for name in script.ERRORS}
    groups = {"dev": {"subjects": 3, "network": numbers, "landmarks": numbers}}
    (tmp_path / "r.json").write_text(json.dumps({"groups": groups}))
    (tmp_path / "page.md").write_text(f"{script.START}\n{script.END}\n")
    arguments = ["--out", str(tmp_path / "r.json"), "--page", str(tmp_path / "page.md")]
    assert script.main([*arguments, "--check"]) == 1
    assert script.main([*arguments, "--table"]) == 0 and script.main([*arguments, "--check"]) == 0
    assert "`dev` (3), network | -1.0 ± 2.0 |" in (tmp_path / "page.md").read_text()
    with pytest.raises(SystemExit):
        script.main([])


def test_errors_are_relative_to_the_cut(monkeypatch):
    """A crop that is turned nowhere, scaled by 1.2 and shifted: anchors that went along are right, others are not."""
    script = load_script("photo_camera")
    cut = np.array([[1.2, 0, -30], [0, 1.2, 10]])
    anchors = apply(cut, CANONICAL_LANDMARKS_CROP * 512)

    def errors(points, azimuth=0.0):
        found = SimpleNamespace(camera=CameraEstimate(azimuth, 0.0, points), photo_to_crop=cut, rgb=np.zeros((512, 1)))
        monkeypatch.setattr(script, "prepare_photo", lambda *args, **more: found)
        return script.errors_of(None, "network")

    assert np.allclose(errors(anchors), 0, atol=1e-3)
    middle = apply(cut, np.full((1, 2), 256.0))
    assert errors((anchors - middle) * 0.95 + middle)[2] == pytest.approx(100 * np.log(0.95), abs=1e-3)
    assert np.allclose(errors(anchors + [5.12, 0]), [0, 0, 0, 1, 0], atol=1e-3)
    assert errors(anchors, 4.0)[0] == pytest.approx(4.0, abs=1e-4)
