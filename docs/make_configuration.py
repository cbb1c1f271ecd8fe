"""Write docs/configuration.md from the configuration classes, so that it can't disagree with them.

    python docs/make_configuration.py            # write the page
    python docs/make_configuration.py --check    # exit code 1 when the page and the classes disagree
"""
import argparse
import ast
import dataclasses
import inspect
import io
import json
import sys
import textwrap
import tokenize
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path.insert(0, str(ROOT / "custom"))

from portrait_diffusion import host  # noqa: E402
from portrait_diffusion.data.portrait import PortraitDataConfig  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.schema import default_of  # noqa: E402
from portrait_diffusion.settings import PipelineConfig  # noqa: E402
from portrait_diffusion.systems.portrait import ExtraGuidance, PortraitSystem  # noqa: E402
from portrait_diffusion.systems.stages import StageConfig  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
HEADER = """\
# Configuration

Made from the code by `python docs/make_configuration.py`; do not edit.

A configuration is a YAML file with these sections; `configs/portrait-mini.yaml` is a complete one. Any key can be set
on the command line: `key.path=value`, for example `system.inversion.latent_steps=80`. Unknown keys and wrong types are
refused before anything is computed, with the nearest valid name. Values may refer to others: `${data.size}`. Lengths
are scene units (1 unit = 0.56 m of a real head), see [conventions](conventions.md).
"""
NOTES = {
    "system.geometry": "The run takes `radius`, `channels`, `resolution`, `hidden`, `frontal_layers`, "
    "`detail_resolution` and `detail_depth` from the prior and the inversion; values given here for them are not used.",
}
PLUGINS = {
    "system.guidance": "portrait-diffusion-hpdm-guidance",
    "system.guidance (plain)": "portrait-diffusion-sd-guidance",
    "system.exporter (in threestudio)": "portrait-diffusion-exporter",
    "system.guidance.noise_sampler": "portrait-diffusion-mvnrs-noise",
    "system.guidance.noise_sampler (object space)": "portrait-diffusion-object-noise",
}
"""Registered classes that no default names, by where they stand in a system's configuration."""


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> its documentation in the source: the string below the field, or the comment behind it."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT
        }  # fmt: skip
        body = ast.parse(source).body[0].body
        for node, following in zip(body, [*body[1:], None]):
            if not isinstance(node, ast.AnnAssign):
                continue
            value = getattr(following, "value", None) if isinstance(following, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[node.target.id] = " ".join(value.value.split())
            elif node.end_lineno in comments:
                docs[node.target.id] = comments[node.end_lineno]
    return docs


def section_lines(cls: type, path: str, note: str = "", own: bool = False) -> list[str]:
    """Markdown of one section and of those below it; `own` shows only the fields that the class itself adds."""
    docs, rows, below = field_docs(cls), [], []
    names = inspect.get_annotations(cls) if own else {field.name for field in dataclasses.fields(cls)}
    shown = [field for field in dataclasses.fields(cls) if field.init and field.name in names]
    defaults = {field.name: default_of(field) for field in shown}
    for name, default in defaults.items():
        place = f"{path}.{name}" if path else name
        registered = defaults.get(f"{name}_type")
        if dataclasses.is_dataclass(default):
            below += section_lines(type(default), place)
        elif isinstance(default, dict) and registered:
            below += section_lines(host.find(registered).Config, place, f"Keys of `{registered}`.")
        else:
            text = default if isinstance(default, str) else json.dumps(default)
            shown = f"`{text}`" if text else ""
            rows.append(f"| `{name}` | {shown} | {docs.get(name, '').replace('|', chr(92) + '|')} |")
    told = "" if (cls.__doc__ or "").startswith(f"{cls.__name__}(") else inspect.cleandoc(cls.__doc__ or "")
    text = " ".join(part for part in (told, note, NOTES.get(path, "")) if part)
    lines = [f"## {path or 'Top level'}", "", *([text, ""] if text else [])]
    table = ["| key | default | meaning |", "|---|---|---|", *rows, ""] if rows else []
    return lines + table + below


def page() -> str:
    """The whole page."""
    lines = section_lines(PipelineConfig, "")
    lines += section_lines(StageConfig, "system.stages.restore, system.stages.refine")
    lines += section_lines(ExtraGuidance, "system.extra_guidances, each")
    lines += section_lines(
        PortraitSystem.Config, "system (in threestudio)", "Keys of `portrait-diffusion-system` beside threestudio's.",
        own=True,
    )  # fmt: skip
    lines += section_lines(
        PortraitDataConfig, "data (in threestudio)", "Keys of `portrait-diffusion-datamodule`, as data_type."
    )
    for place, name in PLUGINS.items():
        lines += section_lines(host.find(name).Config, place, f"Keys of `{name}`, for our system and threestudio's.")
    return HEADER + "\n" + "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the page is out of date")
    options = parser.parse_args(arguments)
    text = page()
    current = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if options.check:
        if text != current:
            print(f"error: {PAGE} is out of date; run: python docs/make_configuration.py", file=sys.stderr)
        return int(text != current)
    if text != current:
        write_text(PAGE, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
