"""The default command: one photo to a 3D head."""
import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import INTERRUPTED, OutOfMemory, UsageError
from ..interrupt import CtrlC
from ..progress import JsonLines, Quiet, make_progress
from ..shipped import find_config
from .commands import check_words
from .describe import describe_run, made_elsewhere
from .memory import smaller_setting
from .words import check_image, confirmed, fail, fetch_shared, is_remote, log, program, show_warnings

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
    show_warnings()

    from ..denormals import flushed_denormals  # from here on: everything heavy

    with flushed_denormals():  # before torch starts its threads
        return run_checked(args, argv, remote, config_source)


def run_checked(args: argparse.Namespace, argv: Sequence[str], remote, config_source) -> int:
    """The rest of `run_command`, which needs torch: the configuration is read and checked, then the head is made."""
    from .. import host
    from ..pipeline import PortraitPipeline
    from ..preflight import check_run, check_stages
    from ..remote import check_offline
    from ..systems.stages import Schedule

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
    if remote is None:
        check_stages(pipeline.config.system)
    for sentence in made_elsewhere(pipeline):
        log.warning("The configuration is a shared one, and %s.", sentence)
    told = sys.stderr if args.json else sys.stdout  # the standard output of --json holds JSON alone
    if args.dry_run or remote is not None:
        origin = f"{remote.url} ({remote.size} bytes, SHA-256 {remote.sha256})" if remote else ""
        print(describe_run(pipeline, image, out, weights, origin), file=told)
    if remote is not None and (args.yes or not args.dry_run):
        if not (args.dry_run or confirmed("Run this?", args.yes, told)):
            return fail("Not run; nothing was written.", UsageError.exit_code, "")
        check_stages(pipeline.config.system)
    if args.dry_run:
        unbuilt = remote is not None and not args.yes and Schedule(pipeline.config.system.stages).total
        rest = (", as far as can be seen without building the stages, which may need much memory: --dry-run --yes does "
                "that, too. Nothing was written.") if unbuilt else "; nothing was written."  # fmt: skip
        print(f"All inputs are in order{rest}", file=told)
        return 0
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
        return fail(f"Interrupted; the same command goes on from the last checkpoint: {again}", INTERRUPTED, "")
    except (MemoryError, RuntimeError) as error:
        from ..devices import is_out_of_memory

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
