"""3D portraits from one photograph. Importing this package registers its classes with the host and does nothing else.

The parent folder is appended to ``sys.path`` when it is missing: processes started by "spawn" inherit that list and
could not import a package that only the host's loader knows.
"""
import sys
from pathlib import Path

__version__ = "0.1.0"

_parent = str(Path(__file__).absolute().parent.parent)
if _parent not in sys.path:
    sys.path.append(_parent)

# All imports that can fail come before those that register classes.
from . import errors, host, optional  # noqa: E402, F401
from .ops import cameras as _cameras  # noqa: E402, F401
from .ops import triplane as _triplane  # noqa: E402, F401
from .ops import volrend as _volrend  # noqa: E402, F401

host.announce_copy(__file__, __version__)

from .export import exporter as _exporter  # noqa: E402, F401
from .geometry import triplane  # noqa: E402, F401
from .guidance import hpdm_guidance, sd_guidance  # noqa: E402, F401
from .noise import mvnrs, samplers  # noqa: E402, F401
from .renderer import plain, volume  # noqa: E402, F401

if host.REGISTERS_SYSTEMS:
    from .data import portrait as _data  # noqa: F401
    from .systems import portrait as _system  # noqa: F401
