"""``convert-prior``: a published pickle to safetensors and JSON, which open in a second and hold nothing to execute."""
import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...errors import UsageError
from ...files import save_tensors, write_text
from .checkpoint import KIND, Checkpoint, open_checkpoint
from .families import FACTS
from .generator import PublishedGenerator
from .sizes import render_options, sizes_of


def generator_of(checkpoint: Checkpoint) -> PublishedGenerator:
    """The network that holds a checkpoint's tensors. Raises: UsageError where names, shapes or options do not fit."""
    try:
        sizes = sizes_of({name: tuple(value.shape) for name, value in checkpoint.state.items()})
        options = render_options(sizes.family, checkpoint.arguments, checkpoint.raw_resolution)
        return PublishedGenerator.load(checkpoint.state, sizes, options)
    except UsageError as error:
        raise UsageError(f"{checkpoint.path}: {error}") from error


def describe(checkpoint: Checkpoint) -> dict:
    """What a converted file says about itself: plain values."""
    generator = generator_of(checkpoint)
    facts = FACTS[checkpoint.family]
    return {
        "family": checkpoint.family, "title": facts.title, "name": checkpoint.name, "sha256": checkpoint.sha256,
        "licence": facts.licence, "citation": facts.citation,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "sizes": asdict(generator.sizes), "options": asdict(generator.options), "arguments": checkpoint.arguments,
        "raw_resolution": checkpoint.raw_resolution,
    }  # fmt: skip


def convert(source: Path, target: Path) -> dict:
    """Write ``target`` (.safetensors) and the same facts beside it (.json); the published tensors stay as they are.

    Returns: `describe`. Raises: UsageError, see `open_checkpoint`; nothing is written then.
    """
    checkpoint = open_checkpoint(source)
    facts = describe(checkpoint)
    state = {name: value.detach().clone().contiguous() for name, value in checkpoint.state.items()}
    save_tensors(target, state, {"kind": KIND, "facts": json.dumps(facts)})
    write_text(target.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    return facts | {"notes": checkpoint.notes}


def parser(program: str) -> argparse.ArgumentParser:
    """Options of ``convert-prior``."""
    options = argparse.ArgumentParser(
        prog=f"{program} convert-prior", allow_abbrev=False,
        description="Read a published prior's .pkl without executing it; write .safetensors and .json.",
    )  # fmt: skip
    options.add_argument("file", type=Path, help="a published .pkl, or a fine-tuned one of the same kind")
    options.add_argument("--out", type=Path, help="target, ending in .safetensors (default: beside the file)")
    return options


def main(argv: Sequence[str], program: str = "launch_portrait.py") -> int:
    """Run the command; returns the exit code."""
    args = parser(program).parse_args(argv)
    target = args.out or args.file.with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        raise UsageError(f"--out '{target}' must end in .safetensors.")
    if target.resolve() == args.file.resolve():
        raise UsageError(f"'{args.file}' is what would be written; give the published .pkl, or another --out.")
    facts = convert(args.file, target)
    print(f"{'family':<10}{facts['title']}, {facts['parameters'] / 1e6:.1f} M parameters")
    known = f"known: {facts['name']}" if facts["name"] else "not in the list of known files"
    print(f"{'sha256':<10}{facts['sha256']} ({known})")
    print(f"{'licence':<10}{facts['licence']}")
    for note in facts["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(f"{'written':<10}{target}\n{'':<10}{target.with_suffix('.json')}")
    return 0
