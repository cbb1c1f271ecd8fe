"""Lets this repository be cloned straight into threestudio's ``custom/`` folder; does nothing anywhere else.

The loader imports the clone's folder, but the package lies two levels further down, in the clone's own ``custom/``.
"""
import sys
from pathlib import Path

if "threestudio" in sys.modules:
    _packages = str(Path(__file__).absolute().parent / "custom")
    if _packages not in sys.path:
        sys.path.append(_packages)  # at the end: nothing that is installed gets hidden; spawned children inherit it
    if __name__ == "portrait_diffusion":
        del sys.modules[__name__]  # cloned under the package's own name: make room, or the next line finds this file
    import portrait_diffusion  # noqa: F401
