"""Which implementation an operation runs with: the choice is checked, and `auto` says once what it took."""
import importlib.util
import logging
import os
import shutil

import torch

from ..errors import EnvironmentProblem

IMPLEMENTATIONS = ("auto", "torch", "triton", "tcnn", "nerfacc")
PACKAGES = {"triton": "triton", "tcnn": "tinycudann", "nerfacc": "nerfacc"}
"""Package that each implementation imports."""
FIXES = {
    "triton": "pip install triton (CUDA builds of torch for Linux bring it)",
    "tcnn": "pip install --no-build-isolation git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch "
    "(compiles CUDA code)",
    "nerfacc": "pip install nerfacc",
}
LOG = logging.getLogger("portrait_diffusion")
_told: set[tuple[str, str]] = set()


def missing(implementation: str, device: torch.device) -> str | None:
    """Why an implementation cannot run on a device, with the fix, or None when it can."""
    if implementation == "torch":
        return None
    package = PACKAGES[implementation]
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed; run: {FIXES[implementation]}"
    interpreted = implementation == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        hint = ", or set TRITON_INTERPRET=1 to interpret the kernels (slow)" if implementation == "triton" else ""
        return f"it needs tensors on a CUDA device, got {device.type}; move the model to a GPU{hint}"
    compilers = os.environ.get("CC", ""), "cc", "gcc", "clang"
    if implementation == "triton" and not interpreted and not any(shutil.which(name) for name in compilers if name):
        return "Triton needs a C compiler to start kernels; install gcc, or set CC to one"
    if implementation == "tcnn":
        from .tcnn_probe import broken

        return broken(device)
    return None


def choose(
    operation: str, implementation: str, device: torch.device, available: tuple[str, ...], unfit: str | None = None
) -> str:
    """The implementation that an operation runs with.

    Args:
        operation: its name, for messages.
        implementation: one of `IMPLEMENTATIONS`; "auto" is the first of `available` that can run here.
        device: of the inputs.
        available: implementations that this operation has, the fastest first, "torch" among them.
        unfit: why all but torch cannot take these inputs, if they cannot.

    Returns: one of `available`.
    Raises: ValueError for an unknown name; EnvironmentProblem when the choice cannot run, with the reason and the fix.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got '{implementation}'.")
    if implementation == "auto":
        chosen = next(name for name in available if name == "torch" or not (unfit or missing(name, device)))
        if (operation, chosen) not in _told:
            _told.add((operation, chosen))
            LOG.info("%s: implementation auto is %s on %s", operation, chosen, device.type)
        return chosen
    reason = missing(implementation, device)
    if reason is None and implementation not in available:
        reason = f"this operation has only {', '.join(available)}; choose one of these"
    if reason is None and implementation != "torch" and unfit:
        reason = f"{unfit}; choose torch for such inputs"
    if reason is not None:
        raise EnvironmentProblem(f"{operation}: implementation '{implementation}' cannot be used: {reason}.")
    return implementation
