"""Starts an unmodified threestudio on a machine without a GPU: `real_threestudio.py CHECKOUT launch.py arguments...`.

Run as a script in a process of its own, from a scratch folder that holds ``custom/``. Packages that can't be installed
without CUDA are stood in for (never one that can be imported), the device getter and the trainer's accelerator are
replaced; everything else is threestudio's own code.
"""
import importlib
import importlib.machinery
import importlib.util
import runpy
import sys
import types
import typing


def _raising(name: str) -> type:
    def __init__(self, *args, **kwargs):
        raise RuntimeError(f"{name} is a stand-in of the test suite and can't be built.")

    return type(name, (), {"__init__": __init__})


def _raising_function(name: str) -> typing.Callable:
    def function(*args, **kwargs):
        raise RuntimeError(f"{name} is a stand-in of the test suite and can't be called.")

    return function


STANDINS: dict[str, dict[str, typing.Any]] = {
    "tinycudann": {
        "free_temporary_memory": lambda: None,
        **{name: _raising(name) for name in ("Encoding", "Network", "NetworkWithInputEncoding")},
    },
    "nvdiffrast": {},
    "nvdiffrast.torch": {
        **{name: type(name, (), {}) for name in ("RasterizeGLContext", "RasterizeCudaContext")},
        **{name: _raising_function(name) for name in ("rasterize", "interpolate", "antialias", "texture")},
    },
    "torchvision": {},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {
        name: _raising_function(name) for name in ("to_tensor", "to_pil_image", "resize", "normalize")
    },
    "torchvision.models": {"vgg16": _raising_function("vgg16")},
    "controlnet_aux": {name: _raising(name) for name in ("CannyDetector", "NormalBaeDetector")},
}


def stand_in() -> list[str]:
    """Import the real libraries first, then stand in for those that are missing. Returns the names stood in for."""
    for name in ("torch", "pytorch_lightning", "torchmetrics", "transformers", "diffusers", "accelerate", "wandb",
                 "nerfacc", "igl", "cv2", "trimesh", "imageio"):  # fmt: skip
        importlib.import_module(name)
    from transformers.utils import import_utils

    for name in ("is_torchvision_available", "is_torchvision_v2_available"):
        getattr(import_utils, name)()  # cached: must not find the stand-in later
    missing = {name.split(".")[0] for name in STANDINS if importlib.util.find_spec(name.split(".")[0]) is None}
    for name, content in STANDINS.items():
        root, _, child = name.rpartition(".")
        if name.split(".")[0] not in missing:
            continue
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        vars(module).update(content)
        sys.modules[name] = module
        if root:
            setattr(sys.modules[root], child, module)
    return sorted(missing)


def patch_for_cpu() -> None:
    """Let threestudio's modules be made on the CPU and its launcher train there."""
    import pytorch_lightning as pl
    import threestudio.utils.misc as misc
    import torch

    original = misc.get_device

    def get_device():
        return torch.device("cpu")

    for name, module in list(sys.modules.items()):
        if name.startswith("threestudio") and getattr(module, "get_device", None) is original:
            module.get_device = get_device

    class Trainer(pl.Trainer):
        def __init__(self, *args, **kwargs):
            if kwargs.get("accelerator") == "gpu":
                kwargs |= {"accelerator": "cpu", "devices": 1}
            super().__init__(*args, **kwargs)

    pl.Trainer = Trainer


def main() -> None:
    checkout, *arguments = sys.argv[1:]
    sys.path[:0] = [checkout, f"{checkout}/extern"]
    print("STANDINS", stand_in())
    import threestudio

    print("BUILT-IN NAMES", len(threestudio.__modules__))
    patch_for_cpu()
    sys.argv = [f"{checkout}/launch.py", *arguments]
    try:
        runpy.run_path(f"{checkout}/launch.py", run_name="__main__")
    finally:
        ours = sorted(name for name in threestudio.__modules__ if name.startswith("portrait-diffusion-"))
        print("OUR NAMES", ours)


if __name__ == "__main__":
    main()
