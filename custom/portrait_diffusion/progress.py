"""Progress of a run: bars where a person watches, plain lines elsewhere, JSON lines on request, nothing when quiet."""
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

LABELS = {
    "photo": "prepare the photo",
    "preview": "first look",
    "latent": "fit the head",
    "detail": "add the photo's detail",
    "tuning": "tune the head to the photo",
    "paint": "paint what is unseen",
    "mesh": "extract the mesh",
    "views": "render views",
    "turntable": "render the turntable",
}  # other stages show their own names


def format_seconds(seconds: float) -> str:
    """``m:ss``, from one hour on ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_loss(values: Mapping[str, float]) -> str:
    """Total and terms of a loss: ``loss 0.143 (rgb 0.081, alpha 0.062)``; empty without values."""
    if not values:
        return ""
    terms = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    return f"loss {sum(values.values()):.3g} ({terms})"


def memory_bytes() -> dict[str, int]:
    """Peak memory so far: of this process (``host``), and of torch on the current GPU (``gpu``) where one is used."""
    from .export.provenance import peak_host_bytes

    found = {"host": peak_host_bytes() or 0}
    torch = sys.modules.get("torch")  # not loaded before something heavy is
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.max_memory_allocated()
    return found


def format_memory(memory: Mapping[str, int]) -> str:
    """``1.4 GB``, with a GPU ``1.4 GB, GPU 6.2 GB``."""
    names = {"host": "", "gpu": "GPU "}
    return ", ".join(f"{names[name]}{size / 1e9:.1f} GB" for name, size in memory.items())


class StageClock:
    """When the current stage began and how long it will still take.

    Args: clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.stage = ""
        self.now = self._began = clock()
        self._skipped = 0

    def update(self, stage: str, done: int) -> bool:
        """Note a report; True when it is the first one of its stage."""
        before, self.now = self.now, self._clock()
        if stage == self.stage:
            return False
        # most stages first report after a step: they began when the stage before ended; a resumed one starts midway
        self._began = before if done else self.now
        self._skipped = max(0, done - 1)
        self.stage = stage
        return True

    def elapsed(self) -> float:
        """Seconds from the begin of the stage to the last report."""
        return self.now - self._began

    def remaining(self, done: int, total: int) -> float | None:
        """Seconds to the end of the stage at its mean speed so far (resumed steps don't count); None before a step."""
        steps = done - self._skipped
        return (total - done) * self.elapsed() / steps if steps > 0 else None


class Quiet:
    """Shows nothing; base of the two that do. A context manager that is called with (stage, done, total, values)."""

    def __enter__(self) -> "Quiet":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __call__(self, stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        pass


class PlainLines(Quiet):
    """One line when a stage ends and every few seconds in between.

    Args: stream: where to.  every: seconds between two lines of a stage.  clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO, every: float = 10.0, clock: Callable[[], float] = time.monotonic):
        self.stream, self.every, self.clock = stream, every, StageClock(clock)
        self._shown = self.clock.now
        self._ended = False

    def __call__(self, stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        if self.clock.update(stage, done):
            self._ended = False
        now, label = self.clock.now, LABELS.get(stage, stage)
        if done >= total and not self._ended:  # some stages report their end twice
            self._ended, self._shown = True, now
            self._write(f"{label}: done in {self.clock.elapsed():.1f} s", values)
        elif done < total and now - self._shown >= self.every:
            left = self.clock.remaining(done, total)
            self._shown = now
            self._write(f"{label}: {done}/{total}{'' if left is None else f', {format_seconds(left)} left'}", values)

    def _write(self, text: str, values: Mapping[str, float]) -> None:
        loss = format_loss(values)
        self.stream.write(f"{text}, {loss}\n" if loss else f"{text}\n")
        self.stream.flush()


class JsonLines(Quiet):
    """One JSON object a line for other programs: ``progress`` for every report, then what `event` is given.

    Args: stream: where to.  clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self.stream, self.clock = stream, StageClock(clock)

    def __call__(self, stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self.clock.update(stage, done)
        left = self.clock.remaining(done, total)
        self.event(
            "progress", stage=stage, done=done, total=total, elapsed_s=round(self.clock.elapsed(), 3),
            left_s=None if left is None else round(left, 3), losses=dict(values), memory_bytes=memory_bytes(),
        )  # fmt: skip

    def event(self, name: str, **values: object) -> None:
        """Write one line. Numbers that JSON does not know (nan, inf) become text."""

        def plain(value: object) -> object:
            if isinstance(value, float) and value - value != 0:
                return str(value)
            return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value

        self.stream.write(json.dumps({"event": name, **plain(values)}, ensure_ascii=False) + "\n")
        self.stream.flush()


class Bars(Quiet):
    """A bar a stage with loss, elapsed and remaining time and peak memory, drawn by rich.

    Args: stream: a terminal.
    """

    def __init__(self, stream: TextIO):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn("{task.description:<24}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), Remaining(), TextColumn("{task.fields[memory]}", style="dim"),
            TextColumn("{task.fields[loss]}", style="dim"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=Console(file=stream))
        self._tasks: dict = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        loss = f"loss {sum(values.values()):.3g}" if values else ""
        if stage not in self._tasks:
            label = LABELS.get(stage, stage)
            self._tasks[stage] = self._progress.add_task(label, total=total, completed=max(0, done - 1), loss="",
                                                         memory="")  # fmt: skip
        if not self._progress.tasks[self._tasks[stage]].finished:  # some stages report their end twice
            self._progress.update(self._tasks[stage], completed=done, total=total, loss=loss,
                                  memory=format_memory(memory_bytes()))  # fmt: skip


def make_progress(stream: TextIO, quiet: bool = False, json_stream: TextIO | None = None) -> Quiet:
    """JSON lines to `json_stream` if given, else nothing when quiet, bars on a terminal, else plain lines."""
    if json_stream is not None:
        return JsonLines(json_stream)
    if quiet:
        return Quiet()
    return Bars(stream) if stream.isatty() else PlainLines(stream)
