"""The tables of docs/priors.md say what the result files and the facts about the families say."""
import json
from pathlib import Path

import pytest
from portrait_diffusion.priors.published.adapter import frame_of
from portrait_diffusion.priors.published.families import FACTS
from portrait_diffusion.priors.published.sizes import DEFAULTS, FAMILIES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "priors.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> list[list[str]]:
    """Cells of a table by the beginning of its heading; names of families without ticks."""
    lines = TEXT[TEXT.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def results(name: str) -> dict[str, list[dict]]:
    """Rows of a result file by family."""
    rows = json.loads((ROOT / "benchmarks" / "results" / name).read_text())["rows"]
    return {family: [row for row in rows if row["family"] == family] for family in FAMILIES}


def says(cell: str, *values: float) -> None:
    """The numbers of a cell are these values, rounded to the digits that are shown."""
    shown = [word.strip(",") for word in cell.replace(",", " ").split() if word.strip(",").replace(".", "").isdigit()]
    assert len(shown) == len(values), (cell, values)
    for text, value in zip(shown, values):
        digits = len(text.partition(".")[2])
        assert abs(float(text) - value) <= 0.501 * 10**-digits, (cell, value)


def test_steps_on_a_cpu():
    found = results("published_prior_speed.json")
    rows = rows_of("| prior | latent step (W+) | step on the planes | peak")
    assert [row[0] for row in rows] == list(FAMILIES)
    for family, latent, planes, memory in rows:
        (row,) = found[family]
        says(latent, row["latent_step_s"])
        says(planes, row["planes_step_s"])
        says(memory, row["planes_peak_gb"])


def test_steps_on_a_gpu():
    found = results("published_prior_speed_h200.json")
    rows = rows_of("| prior | picture |")
    assert [row[0] for row in rows] == list(FAMILIES)
    for family, picture, latent, planes, generator in rows:
        (row,) = found[family]
        says(picture, 1000 * row["image_s"])
        says(latent, 1000 * row["latent_step_s"])
        says(planes, 1000 * row["planes_step_s"], row["planes_peak_gb"])
        says(generator, 1000 * row["generator_step_s"], row["generator_peak_gb"])


def test_whole_fits():
    found, family = results("published_fits_h200.json"), ""
    for name, file, tuning, seconds, memory, photo in rows_of("| prior | file, converted in"):
        family = name.partition(",")[0] or family
        rows = [row for row in found[family] if tuning == row["tuning"]]
        if file:
            says(file, rows[0]["pickle_mb"], rows[0]["convert_s"])
        says(seconds, *(row["seconds"] for row in rows))
        says(memory, *(row["peak_device_gb"] for row in rows))
        if rows[0]["status"] == "ok":
            says(photo, rows[0]["metrics"]["psnr_db"], rows[0]["metrics"]["sface_front"])
        else:
            assert photo.startswith("refused") and {row["status"] for row in rows} == {"refused"}


def test_scales_and_cameras():
    for names, _, scale, camera in rows_of("| | aligned as"):
        for family in names.split(", "):
            says(scale.replace("(estimate)", ""), 1 / frame_of(family, DEFAULTS[family]).density_scale)
            assert f"{FACTS[family].fovy_deg:.2f}°" in camera


@pytest.mark.parametrize("family", FAMILIES)
def test_every_known_file_is_listed_with_its_checksum(family):
    listed = {cells[3]: cells[1].split()[0] for cells in rows_of("| `type` | file |") if cells[0] == family}
    files = {sha256: name for sha256, name in listed.items() if sha256 != "not published"}
    assert listed and files == FACTS[family].files
