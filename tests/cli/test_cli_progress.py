"""Progress lines: when they come, the remaining time, and that resumed steps don't count as fast ones."""
import io
import json

import pytest
from portrait_diffusion.progress import (
    Bars,
    JsonLines,
    PlainLines,
    Quiet,
    StageClock,
    format_loss,
    format_seconds,
    make_progress,
)


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (36061, "10:01:01")],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def test_losses_add_up():
    assert format_loss({}) == ""
    assert format_loss({"rgb": 0.25, "alpha": 0.5}) == "loss 0.75 (rgb 0.25, alpha 0.5)"


def test_remaining_time_is_exact_for_constant_speed():
    clock = Clock()
    stage = StageClock(clock)
    for done in range(1, 11):
        clock.now += 3.0
        stage.update("latent", done)
        assert stage.remaining(done, 40) == pytest.approx(3.0 * (40 - done))


def test_resumed_steps_do_not_count():
    clock = Clock()
    stage = StageClock(clock)
    for done in (31, 32):
        clock.now += 5.0
        stage.update("latent", done)
    assert stage.remaining(32, 40) == pytest.approx(40.0)


def test_there_is_no_estimate_before_a_step():
    clock = Clock()
    stage = StageClock(clock)
    stage.update("photo", 0)
    assert stage.remaining(0, 1) is None


def test_plain_lines_come_every_ten_seconds_and_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with PlainLines(stream, every=10.0, clock=clock) as progress:
        for done in range(1, 26):
            clock.now += 1.0
            progress("latent", done, 25, {"rgb": 0.5})
        progress("latent", 25, 25, {})  # reported twice
        clock.now += 2.0
        progress("glb", 1, 1, {})
    assert stream.getvalue().splitlines() == [
        "fit the head: 10/25, 0:15 left, loss 0.5 (rgb 0.5)",
        "fit the head: 20/25, 0:05 left, loss 0.5 (rgb 0.5)",
        "fit the head: done in 25.0 s, loss 0.5 (rgb 0.5)",
        "glb: done in 2.0 s",
    ]


def test_bars_show_stage_count_and_loss():
    stream = Terminal()
    with make_progress(stream) as progress:
        assert isinstance(progress, Bars)
        progress("latent", 1, 2, {"rgb": 0.5, "alpha": 0.25})
        progress("latent", 2, 2, {"rgb": 0.5, "alpha": 0.25})
        progress("views", 16, 16, {})
        progress("views", 1, 1, {})  # reported twice, in other units
    text = stream.getvalue()
    assert "fit the head" in text and "2/2" in text and "16/16" in text and "1/1" not in text and "loss 0.75" in text


def test_the_kind_follows_the_stream():
    assert type(make_progress(io.StringIO())) is PlainLines
    assert type(make_progress(Terminal(), quiet=True)) is Quiet


def test_json_lines_hold_what_the_bars_show_and_the_result():
    clock, stream = Clock(), io.StringIO()
    progress = JsonLines(stream, clock)
    assert type(make_progress(Terminal(), True, stream)) is JsonLines
    for done in (1, 2):
        clock.now += 2.0
        progress("latent", done, 4, {"rgb": 0.5, "alpha": float("nan")})
    progress.event("result", files={"glb": ["a.glb"]}, stopped=False)
    first, second, result = (json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().splitlines())
    assert (second["event"], second["stage"], second["done"], second["total"]) == ("progress", "latent", 2, 4)
    assert first["left_s"] == 6.0 and second["left_s"] == 4.0 and second["elapsed_s"] == 4.0
    assert second["losses"] == {"rgb": 0.5, "alpha": "nan"} and second["memory_bytes"]["host"] > 0
    assert result == {"event": "result", "files": {"glb": ["a.glb"]}, "stopped": False}
