"""The example of docs/stages.md is a valid configuration whose stages do something."""
from pathlib import Path

import yaml
from portrait_diffusion.data.cameras import draw_angles
from portrait_diffusion.settings import load_pipeline_config
from portrait_diffusion.systems import losses
from portrait_diffusion.systems.stages import Schedule

PAGE = Path(__file__).resolve().parents[2] / "docs" / "stages.md"


def test_the_example_is_valid():
    text = PAGE.read_text(encoding="utf-8")
    block = text.split("```yaml\n")[1].split("```")[0]
    config, _ = load_pipeline_config(yaml.safe_load(block))
    schedule = Schedule(config.system.stages)
    assert schedule.boundaries() == [100, 300]
    known = {f"lambda_{name}" for name in losses.known_names()}
    for stage in schedule.stages.values():
        assert stage.guidance > 0 and set(stage.loss) <= known
    back = schedule.stages["restore"]
    azimuth, _ = draw_angles(3, 0, back.views, back.azimuths, back.elevations, "independent", back.pair_deg)
    assert bool((azimuth.abs() >= 70).all()), "from 70 to 290 degrees is the back"
