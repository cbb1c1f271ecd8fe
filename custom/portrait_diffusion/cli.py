"""The command line: one photo to a 3D head, and the commands around it.

Exit codes: 0 success, 2 usage (a file, a key, a value), 3 environment (`doctor` says what is missing), 4 out of memory
(the message names a smaller setting), 130 interrupted (the same command goes on), 141 nobody reads the output any more.
"""
import argparse
import difflib
import errno
import logging
import math
import os
import select
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from . import __version__
from .errors import EnvironmentProblem, OutOfMemory, PortraitError, UsageError
from .interrupt import CtrlC
from .optional import require
from .progress import JsonLines, Quiet, make_progress

INTERRUPTED = 130
UNREAD = 141
"""128 and the number of SIGPIPE, as a shell says it of other tools: ``... | head`` has read enough."""
CONFIGS = Path(__file__).resolve().parent / "configs"
_log = logging.getLogger("portrait_diffusion")
_DISK_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.ENAMETOOLONG}

_EPILOG = """\
other commands (each with its own --help):
  render          pictures of a finished head from any direction
  doctor          what is installed, what is missing, and the command that brings it
  models          which public models a configuration needs; downloads them if you agree
  convert-prior   read a published prior's file safely, write safetensors
  train-prior     train a prior on rendered heads
  render-dataset  render synthetic heads to train on
  render-drafts   render a prior's answers to the front views of those heads, to train train-hpdm on
  train-matte     train the matting network
  train-camera    train the network that finds the photo's camera
  train-hpdm      train the multi-view diffusion model on rendered heads
  render-benchmark  render the benchmark's subjects from seeds, check them
  evaluate        the benchmark: metrics of every rung of the ladder, with intervals, plots and a gallery

example:
  %(prog)s --image photo.jpg --out outputs/me system.exporter.render_size=192
"""


def program() -> list[str]:
    """How this process was started, as the words to start it again."""
    started = sys.argv[0] or "launch_portrait.py"
    return ["python", started] if started.endswith(".py") else [Path(started).name]


def run_parser() -> argparse.ArgumentParser:
    """Options of the default command."""
    parser = argparse.ArgumentParser(
        prog=program()[-1], description="One portrait photo to a 3D head: GLB, PLY, turntable video, views, report.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--image", type=Path, help="the photo (or data.image_path in the configuration)")
    parser.add_argument("--config", help="YAML file, name of a shipped one (default: portrait-mini), https:// URL of a "
                        "shared one, or hf://USER/REPO/FILE.yaml; shared ones are shown before they run")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="run a shared configuration without asking")
    parser.add_argument("--out", type=Path, help="output folder (default: outputs/NAME/PHOTO); continued if it exists")
    parser.add_argument("--aligned", action="store_true", help="the photo already is a canonical crop")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the first CUDA GPU, else the CPU)")
    parser.add_argument("--seed", type=int, help="seed of every random choice (default: the configuration's, 0)")
    parser.add_argument("--metrics", action="store_true", help="also compare the head with the photo, for the report")
    parser.add_argument("--quiet", action="store_true", help="no progress; warnings, errors and the result only")
    parser.add_argument("--json", action="store_true", help="progress and result as JSON lines on the standard output")
    parser.add_argument("--dry-run", action="store_true", help="check photo, configuration and packages; write nothing")
    parser.add_argument("--version", action="version", version=f"portrait-diffusion {__version__}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")
    return parser


def render_parser() -> argparse.ArgumentParser:
    """Options of `render`."""
    parser = argparse.ArgumentParser(
        prog=f"{program()[-1]} render", allow_abbrev=False,
        description="Render a finished head from any direction; writes one RGBA PNG a view.",
    )  # fmt: skip
    parser.add_argument("--run", type=Path, required=True, help="output folder of a finished run")
    parser.add_argument("--azimuths", type=float, nargs="+", default=[0.0], metavar="DEG", help="0 front, 90 its right")
    parser.add_argument("--elevations", type=float, nargs="+", default=[0.0], metavar="DEG", help="-89 to 89, 0 level")
    parser.add_argument("--size", type=int, default=256, help="width and height, pixels (default 256)")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: RUN/renders)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the first CUDA GPU, else the CPU)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def doctor_parser() -> argparse.ArgumentParser:
    """Options of `doctor`."""
    return argparse.ArgumentParser(
        prog=f"{program()[-1]} doctor",
        description="Check packages, model files, weights and devices. Exit code 3 if the main job can't run here.",
        allow_abbrev=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. argparse's own errors leave through SystemExit with code 2.

    What nobody reads any more (``... | head``) is dropped without a word, with the exit code `UNREAD`.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    try:
        try:
            return _answer(argv)
        finally:
            for stream in streams:
                stream.flush()  # here, where it can be answered, rather than when Python ends
    except BrokenPipeError:
        unread = [stream for stream in streams if reader_gone(stream)]
        if not unread:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:
            os.dup2(nowhere, stream.fileno())  # Python flushes what is left when it ends
        os.close(nowhere)
        return UNREAD


def reader_gone(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose other end is closed."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # no file of the operating system
        return False
    if not hasattr(select, "poll"):  # Windows, where such a pipe is told by another error
        return False
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _answer(argv: Sequence[str] | None) -> int:
    """`main`, but for pipes: every foreseen error becomes a sentence and an exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("", argv)
    try:
        return COMMANDS.get(command, run_command)(rest)
    except PortraitError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("Interrupted.", INTERRUPTED, "")
    except ModuleNotFoundError as error:
        if (error.name or "portrait_diffusion").split(".")[0] == "portrait_diffusion":
            raise
        doctor = shlex.join([*program(), "doctor"])
        return _fail(f"The package '{error.name}' is not installed; run: pip install -r requirements.txt ({doctor} "
                     "lists all that is missing).", EnvironmentProblem.exit_code)  # fmt: skip
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f"'{error.filename}'" if error.filename else "the output folder"
        return _fail(f"{where} can't be read or written: {error.strerror}.", EnvironmentProblem.exit_code)


def _fail(message: str, code: int, kind: str = "error: ") -> int:
    print(f"{kind}{message}", file=sys.stderr)
    return code


class _StderrHandler(logging.Handler):
    """Log lines to whatever ``sys.stderr`` is when they come: rich replaces it while its bars are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def _show_warnings() -> None:
    if not any(isinstance(handler, _StderrHandler) for handler in _log.handlers):
        _log.addHandler(_StderrHandler(logging.WARNING))


# ---- the main job ------------------------------------------------------------------------------------------------
def run_command(argv: Sequence[str]) -> int:
    """Photo to head. What is cheap to check comes first; nothing is written before all of it is checked."""
    args = run_parser().parse_intermixed_args(argv)
    check_words(args.overrides)
    if args.image is not None:
        check_image(args.image)
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out '{args.out}' is a file; name a folder.")
    remote = fetch_shared(args.config) if is_remote(args.config) else None
    config_source = find_config(args.config) if remote is None else remote.content
    _show_warnings()

    from .denormals import flushed_denormals  # from here on: everything heavy

    with flushed_denormals():  # before torch starts its threads
        return run_checked(args, argv, remote, config_source)


def run_checked(args: argparse.Namespace, argv: Sequence[str], remote, config_source) -> int:
    """The rest of `run_command`, which needs torch: the configuration is read and checked, then the head is made."""
    from . import host
    from .pipeline import PortraitPipeline
    from .preflight import check_run
    from .remote import check_offline

    host.set_device(args.device)
    overrides = [*args.overrides, *(["data.aligned=true"] if args.aligned else [])]
    overrides += [] if args.seed is None else [f"seed={args.seed}"]
    pipeline = PortraitPipeline.from_config(config_source, overrides)
    image = args.image or pipeline.config.data.image_path
    if not str(image):
        raise UsageError("No photo given; use --image PATH or data.image_path=PATH.")
    image = Path(image)
    if args.image is None:
        check_image(image)
    out = args.out or pipeline.default_out_dir(image)
    if remote is not None:
        check_offline(pipeline.raw_config, args.config)
    weights = check_run(pipeline.config, args.config or "")
    for sentence in made_elsewhere(pipeline):
        _log.warning("The configuration is a shared one, and %s.", sentence)
    told = sys.stderr if args.json else sys.stdout  # the standard output of --json holds JSON alone
    if args.dry_run or remote is not None:
        origin = f"{remote.url} ({remote.size} bytes, SHA-256 {remote.sha256})" if remote else ""
        print(describe_run(pipeline, image, out, weights, origin), file=told)
    if args.dry_run:
        print("All inputs are in order; nothing was written.", file=told)
        return 0
    if remote is not None and not confirmed("Run this?", args.yes, told):
        return _fail("Not run; nothing was written.", UsageError.exit_code, "")
    command = [*program(), *argv]
    progress = make_progress(sys.stderr, args.quiet, sys.stdout if args.json else None)
    return make_head(pipeline, image, out, progress, command, args.metrics)


def make_head(pipeline, image: Path, out: Path, progress: Quiet, command: Sequence[str], metrics: bool) -> int:
    """Run, save, print where things are; returns the exit code. Interruption and lack of memory are answered here."""
    stage = "photo"

    def tell(name: str, done: int, total: int, values: dict) -> None:
        nonlocal stage
        stage = name
        progress(name, done, total, values)

    def tell_step(name: str, done: int, total: int, values: dict) -> None:
        tell(name, done, total, values)
        if name not in ("photo", "preview", "paint"):
            ctrl_c.check(done, total)

    again = shlex.join(command)
    try:
        with progress, CtrlC() as ctrl_c:
            result = pipeline.run(image, out, tell_step)
            if metrics:
                tell("metrics", 0, 1, {})
                result.evaluate()
                tell("metrics", 1, 1, {})
            saved = result.save(out, tell, command=command)
    except KeyboardInterrupt:
        return _fail(f"Interrupted; the same command goes on from the last checkpoint: {again}", INTERRUPTED, "")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        hint = smaller_setting(stage, pipeline.config)
        raise OutOfMemory(
            f"Out of memory in the stage '{stage}'; the same command with smaller settings: {again} {hint}"
        ) from error
    if isinstance(progress, JsonLines):
        files = {name: [str(path) for path in paths] for name, paths in saved.files.items()}
        progress.event("result", files=files, stopped=result.stopped, again=again)
        return INTERRUPTED if result.stopped else 0
    for label, name in (("GLB", "glb"), ("video", "turntable"), ("report", "report")):
        print(f"{label:<8}{saved.files[name][0]}")
    print(f"{'again':<8}{again}   ({'goes on where this stopped' if result.stopped else 'makes only what is missing'})")
    print(f"{'views':<8}{shlex.join([*program(), 'render', '--run', str(out), '--azimuths', '-30', '0', '30'])}")
    return INTERRUPTED if result.stopped else 0


def check_words(words: Sequence[str]) -> None:
    """Answer bare words that can't be overrides with what was probably meant.

    Raises: UsageError.
    """
    for word in words:
        if "=" in word:
            continue
        if Path(word).is_file():
            raise UsageError(f"What is '{word}'? For a photo write: --image {shlex.quote(word)}.")
        near = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"the nearest command is '{near[0]}'" if near else f"the commands are {', '.join(COMMANDS)}"
        raise UsageError(f"'{word}' is neither key=value nor a command; {hint}.")


def check_image(path: Path) -> None:
    """Decode a photo once, small: fails within a fraction of a second where the run would fail later.

    Raises: UsageError for a missing, empty, broken or foreign file.
    """
    from .photo.load import load_photo

    load_photo(path, max_side=64)


def find_config(text: str | None) -> Path | None:
    """File of ``--config``: a path, or the bare name of a shipped configuration; None stays None (the default).

    Raises: UsageError when there is neither.
    """
    if text is None or Path(text).is_file():
        return None if text is None else Path(text)
    shipped = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
    if text in shipped:
        return shipped[text]
    near = difflib.get_close_matches(Path(text).stem, shipped, n=1, cutoff=0.5) or sorted(shipped)
    raise UsageError(f"There is no configuration '{text}'; give a YAML file, or the name of a shipped one: {near[0]}.")


def fetch_shared(text: str):
    """A remote configuration, valid by itself and without paths out of the working folder, see `remote`.

    Raises: UsageError, EnvironmentProblem.
    """
    from .remote import check_paths, fetch_config
    from .settings import load_pipeline_config

    found = fetch_config(text)
    _, plain = load_pipeline_config(found.content)
    check_paths(plain, text)
    return found


def is_remote(text: str | None) -> bool:
    """Whether a configuration is named by URL."""
    return text is not None and "://" in text


def made_elsewhere(pipeline) -> list[str]:
    """What differs from where a shared configuration was made."""
    from .export.made_with import differences
    from .settings import prior_weights

    return differences(pipeline.raw_config, prior_weights(pipeline.config.system.prior))


def describe_run(
    pipeline, image: Path, out: Path, weights: Sequence[tuple[str, int]], origin: str = ""
) -> str:
    """What a run would do, for ``--dry-run`` and before a shared configuration runs. Args: origin: of a shared one."""
    import yaml

    from . import host
    from .visible import escaped

    config = pipeline.config
    export = config.system.exporter
    views = len(export.view_azimuths_deg) * len(export.view_elevations_deg)
    rows = {
        **({"from": origin} if origin else {}),
        "photo": str(image),
        "output": f"{out}{' (exists, would be continued)' if out.is_dir() else ''}",
        "fit": describe_fit(config.system),
        **({"stages": stages} if (stages := describe_stages(config.system)) else {}),
        "export": f"mesh from {export.mesh.resolution}^3 cells, {views} views and {export.turntable.frames} frames of "
        f"video at {export.render_size} px",
        "weights": ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in weights),
        "device": str(host.get_device()),
    }
    table = "\n".join(f"{label:<8}{escaped(text)}" for label, text in rows.items())
    return f"{table}\n\n{yaml.safe_dump(pipeline.raw_config, sort_keys=False, allow_unicode=True)}"


def describe_fit(system) -> str:
    """Steps of the fit of the bundled prior, or of a published one."""
    if system.prior.type == "bundled":
        fit = system.inversion
        return f"{fit.latent_steps} steps at {fit.latent_size} px, then {fit.detail_steps} at {fit.detail_size} px"
    fit = system.published_fit
    tuning = {"planes": "on its planes", "generator": "on its weights"}.get(fit.tuning)
    after = f", then {fit.tuning_steps} {tuning}" if tuning else ""
    return f"{system.prior.type}, {fit.latent_steps} steps at {fit.size} px{after}; at most {fit.attempts} starts"


def describe_stages(system) -> str:
    """Steps of the stages after the initialization and the model that guides them; empty where there are none."""
    from .export.made_with import named_models
    from .systems.stages import Schedule

    schedule = Schedule(system.stages)
    steps = ", ".join(f"{name} {stage.steps} steps" for name, stage in schedule.stages.items() if stage.steps)
    models = ", ".join(name for *_, name in named_models(vars(system)))
    return f"{steps}, guided by {system.guidance_type or 'nothing'} ({models or 'no model'})" if steps else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out: Python's, numpy's, or torch's on any device."""
    import torch

    # on the CPU torch raises a plain RuntimeError that names its allocator
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def smaller_setting(stage: str, config) -> str:
    """Overrides that halve what takes the memory in a stage, as text for the command line."""
    from .systems.stages import Schedule

    fit, export = config.system.inversion, config.system.exporter
    settings = {
        "photo": {"data.size": max(64, config.data.size // 2)},
        "latent": {"system.inversion.latent_size": max(32, fit.latent_size // 2)},
        "detail": {
            "system.inversion.detail_size": max(32, fit.detail_size // 2),
            "system.inversion.detail_resolution": max(32, fit.detail_resolution // 2),
        },
        "export": {
            "system.exporter.mesh.resolution": max(16, export.mesh.resolution // 2),
            "system.exporter.points_per_call": max(4096, export.points_per_call // 4),
            "system.exporter.render_size": max(8, export.render_size // 2),
        },
    }
    before = {"preview": "detail", "metrics": "export"}  # preview reports when it is over: the fit comes next
    if config.system.prior.type != "bundled":
        published, before["preview"] = config.system.published_fit, "latent"
        settings["latent"] = settings["tuning"] = {
            "system.published_fit.ray_chunk": max(64, published.ray_chunk // 2),
            "system.published_fit.size": max(32, published.size // 2),
        }
    for name, part in Schedule(config.system.stages).stages.items():
        counts = {key: getattr(part, key) // 2 for key in ("views", "painted") if getattr(part, key) > 1}
        settings[name] = {f"system.stages.{name}.{key}": count for key, count in counts.items()} or settings["export"]
        if part.painted:
            before.setdefault("paint", name)
    chosen = settings.get(before.get(stage, stage), settings["export"])
    return " ".join(f"{key}={value}" for key, value in chosen.items())


# ---- the other commands ------------------------------------------------------------------------------------------
def render_command(argv: Sequence[str]) -> int:
    """Pictures of a finished head from given directions."""
    args = render_parser().parse_args(argv)
    if not args.run.is_dir():
        raise UsageError(f"--run '{args.run}' is no folder; give the output folder of a finished run.")
    if not 8 <= args.size <= 4096:
        raise UsageError(f"--size must be between 8 and 4096 pixels, got {args.size}.")
    if not all(map(math.isfinite, [*args.azimuths, *args.elevations])):
        raise UsageError("--azimuths and --elevations must be finite numbers, degrees.")
    _show_warnings()

    from . import host
    from .export.renders import ViewRenderer
    from .export.views import view_directions, write_view
    from .result import PortraitResult

    directions = view_directions(args.azimuths, args.elevations)
    host.set_device(args.device)
    result = PortraitResult.load(args.run, args.device)
    renderer = ViewRenderer(result.render_fn, args.size, result.device)
    out = args.out or args.run / "renders"
    paths = []
    with make_progress(sys.stderr, args.quiet) as progress:
        for i, direction in enumerate(directions, 1):
            paths.append(write_view(out, renderer, *direction))
            progress("views", i, len(directions), {})
    print("\n".join(map(str, paths)))
    return 0


def doctor_command(argv: Sequence[str]) -> int:
    """Check the machine."""
    doctor_parser().parse_args(argv)
    from .doctor import examine, format_table, verdict

    checks = examine()
    print(format_table(checks))
    text, code = verdict(checks)
    print(text)
    return code


def convert_prior_command(argv: Sequence[str]) -> int:
    """Options and work: `priors.published.convert.main`."""
    from .priors.published.convert import main as convert

    return convert(list(argv), program()[-1])


def train_prior_command(argv: Sequence[str]) -> int:
    """Options and work: `priors.train.main`."""
    from .priors.train import main as train

    return train(list(argv))


def render_drafts_command(argv: Sequence[str]) -> int:
    """Options and work: `priors.drafts.main`."""
    from .priors.drafts import main as render

    return render(list(argv))


def render_dataset_command(argv: Sequence[str]) -> int:
    """Options and work: `synthetic.dataset.main`."""
    from .synthetic.dataset import main as render

    return render(list(argv))


def train_matte_command(argv: Sequence[str]) -> int:
    """Options and work: `photo.train_matte.main`."""
    from .photo.train_matte import main as train

    print(train(list(argv)))
    return 0


def train_camera_command(argv: Sequence[str]) -> int:
    """Options and work: `photo.train_camera.main`."""
    from .photo.train_camera import main as train

    print(train(list(argv)))
    return 0


def train_hpdm_command(argv: Sequence[str]) -> int:
    """Options and work: `guidance.hpdm.train.main`."""
    require("diffusers", extra="hpdm")
    require("pytorch_lightning", extra="train", package="pytorch-lightning")
    from .guidance.hpdm.train import main as train

    return train(list(argv))


def render_benchmark_command(argv: Sequence[str]) -> int:
    """Options and work: `benchmark.truth.main`."""
    from .benchmark.truth import main as render

    return render(list(argv))


def evaluate_command(argv: Sequence[str]) -> int:
    """Options and work: `benchmark.evaluate.main`."""
    from .benchmark.evaluate import main as evaluate

    return evaluate(argv)


def models_parser() -> argparse.ArgumentParser:
    """Options of `models`."""
    parser = argparse.ArgumentParser(
        prog=f"{program()[-1]} models", allow_abbrev=False,
        description="Say which public models a configuration needs and which are here; download the rest if you agree.",
    )  # fmt: skip
    parser.add_argument("--config", required=True, help="YAML file, name of a shipped one, or URL of a shared one")
    parser.add_argument("--yes", action="store_true", help="download without asking")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")
    return parser


def confirmed(question: str, yes: bool, stream: TextIO | None = None) -> bool:
    """Ask on the terminal; `yes` answers, and the end of the input (Ctrl-D) means no.

    Args: stream: where the question goes, default the standard output.
    Raises: UsageError where nobody can be asked.
    """
    stream = stream or sys.stdout
    if yes:
        print(f"{question} yes (--yes)", file=stream)
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody can be asked here; add --yes to agree.")
    print(f"{question} [y/N] ", end="", file=stream, flush=True)
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        print(file=stream)
        return False


def models_command(argv: Sequence[str]) -> int:
    """Public models of a configuration."""
    args = models_parser().parse_intermixed_args(argv)
    check_words(args.overrides)
    source = fetch_shared(args.config).content if is_remote(args.config) else find_config(args.config)
    from .models import get_models
    from .settings import load_pipeline_config

    _, plain = load_pipeline_config(source, args.overrides)
    done = get_models(plain["system"], print, lambda question: confirmed(question, args.yes))
    return 0 if done else EnvironmentProblem.exit_code


COMMANDS = {
    "render": render_command,
    "doctor": doctor_command,
    "models": models_command,
    "convert-prior": convert_prior_command,
    "train-prior": train_prior_command,
    "render-dataset": render_dataset_command,
    "render-drafts": render_drafts_command,
    "train-matte": train_matte_command,
    "train-camera": train_camera_command,
    "train-hpdm": train_hpdm_command,
    "render-benchmark": render_benchmark_command,
    "evaluate": evaluate_command,
}
