"""The command ``render``: pictures of a finished head from given directions."""
import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..progress import make_progress
from .words import program, show_warnings


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


def main(argv: Sequence[str]) -> int:
    """Pictures of a finished head from given directions."""
    args = render_parser().parse_args(argv)
    if not args.run.is_dir():
        raise UsageError(f"--run '{args.run}' is no folder; give the output folder of a finished run.")
    if not 8 <= args.size <= 4096:
        raise UsageError(f"--size must be between 8 and 4096 pixels, got {args.size}.")
    if not all(map(math.isfinite, [*args.azimuths, *args.elevations])):
        raise UsageError("--azimuths and --elevations must be finite numbers, degrees.")
    show_warnings()

    from .. import host
    from ..export.renders import ViewRenderer
    from ..export.views import view_directions, write_view
    from ..result import PortraitResult

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
