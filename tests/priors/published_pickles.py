"""Checkpoints in the published containers, made without the authors' code: stand-in classes that only pickle alike."""
import io
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from priors.published_samples import random_state, tiny_arguments, tiny_sizes


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__path__ = []
    return module


def _foreign_class(module: str, name: str) -> type:
    return type(name, (), {"__module__": module, "__qualname__": name})


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the published reconstruction must never run")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util", "__qualname__": "EasyDict"})
FOREIGN = {
    ("training.volumetric_rendering.ray_sampler", "RaySampler"),
    ("training.volumetric_rendering.renderer", "ImportanceRenderer"),
    ("training.volumetric_rendering.ray_marcher", "MipRayMarcher2"),
    ("training.triplane", "OSGDecoder"),
    ("training.smpl_triplane", "OSGDecoder"),
    ("training.smpl_triplane", "GPoseBranch"),
}
CLASSES = {key: _foreign_class(*key) for key in FOREIGN}


class installed:
    """Context in which pickle finds the stand-ins under the published names."""

    def __enter__(self):
        names = {"torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"}
        for module, _ in FOREIGN:
            parts = module.split(".")
            names |= {".".join(parts[: i + 1]) for i in range(len(parts))}
        self.before = {name: sys.modules.get(name) for name in names}
        for name in names:
            sys.modules[name] = _module(name)
        sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
        sys.modules["dnnlib.util"].EasyDict = EasyDict
        for (module, name), cls in CLASSES.items():
            setattr(sys.modules[module], name, cls)

    def __exit__(self, *error):
        for name, module in self.before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Persistent:
    """Pickles as an object of the published persistence: a dictionary with its class's source in it."""

    def __init__(self, class_name: str, state: dict, source: str):
        self.class_name, self.values, self.source = class_name, state, source

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.class_name}
        return _reconstruct_persistent_obj, (EasyDict(meta | {"state": self.values}),)


class OnGpu:
    """Pickles as a tensor that was saved from a GPU."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce__(self):
        rebuild, (storage, *rest) = self.tensor.__reduce_ex__(2)[:2]
        return rebuild, (Bytes(storage_bytes(self.tensor, "cuda:0")), *rest)


class Bytes:
    """Pickles as a storage made of given bytes."""

    def __init__(self, data: bytes):
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


def storage_bytes(tensor: torch.Tensor, location: str = "cpu") -> bytes:
    """A tensor's storage as torch pickles it, as if it lay at another location."""
    buffer = io.BytesIO()
    tensor = tensor.contiguous()
    storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
    torch.save(storage, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    wanted = b"X" + len(location).to_bytes(4, "little") + location.encode()
    assert data.count(b"X\x03\x00\x00\x00cpu") == 1
    return data.replace(b"X\x03\x00\x00\x00cpu", wanted)


def _state(parameters: dict, buffers: dict, modules: dict, **attributes) -> dict:
    return {
        "training": False, "_parameters": OrderedDict(parameters), "_buffers": OrderedDict(buffers),
        "_non_persistent_buffers_set": set(), "_backward_hooks": OrderedDict(), "_modules": OrderedDict(modules),
        **attributes,
    }  # fmt: skip


def _tree(state: dict) -> dict:
    root: dict = {}
    for key, value in state.items():
        *path, leaf = key.split(".")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return root


BUFFERS = {"resample_filter", "noise_const", "w_avg"}


def _build(node: dict, source: str, family: str, path: str = "") -> object:
    tensors = {k: v for k, v in node.items() if isinstance(v, torch.Tensor)}
    modules = {k: _build(v, source, family, f"{path}.{k}") for k, v in node.items() if isinstance(v, dict)}
    parameters = {k: torch.nn.Parameter(v, requires_grad=False) for k, v in tensors.items() if k not in BUFFERS}
    buffers = {k: v for k, v in tensors.items() if k in BUFFERS}
    if path == ".decoder.net":
        modules["1"] = torch.nn.Softplus()
        sequential = torch.nn.Sequential()
        sequential.__dict__.update(_state(parameters, buffers, dict(sorted(modules.items()))))
        return sequential
    state = _state(parameters, buffers, modules, weight_gain=np.float64(0.5), resolution=4)
    foreign = {
        ".decoder": {"eg3d": "training.triplane", "pyramid": "training.smpl_triplane"}.get(family),
        ".pose_branch": "training.smpl_triplane",
    }.get(path)
    if foreign:
        plain = CLASSES[foreign, "OSGDecoder" if path == ".decoder" else "GPoseBranch"]()
        plain.__dict__.update(state)
        return plain
    return Persistent("SynthesisLayer", state, source)


_FIRST_TWO = [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]]]
EG3D_PLANE_AXES = [*_FIRST_TWO, [[0, 0, 1], [1, 0, 0], [0, 1, 0]]]
PANOHEAD_PLANE_AXES = [*_FIRST_TWO, [[0, 1, 0], [0, 0, 1], [1, 0, 0]]]


def published_object(family: str, state: dict, source: str = "", axes=None, resolution: int = 8) -> dict:
    """The dictionary that the authors pickle: training arguments and the three networks."""
    axes = axes or (EG3D_PLANE_AXES if family == "eg3d" else PANOHEAD_PLANE_AXES)
    generator = _build(_tree(state), source, family)
    marcher = CLASSES["training.volumetric_rendering.ray_marcher", "MipRayMarcher2"]()
    on_gpu = OnGpu(torch.tensor(axes, dtype=torch.float32))
    renderer_values = _state({}, {}, {"ray_marcher": marcher}, plane_axes=on_gpu)
    if family in ("eg3d", "pyramid"):
        renderer = CLASSES["training.volumetric_rendering.renderer", "ImportanceRenderer"]()
        renderer.__dict__.update(renderer_values)
    else:
        renderer = Persistent("ImportanceRenderer", renderer_values, source)
    modules = generator.values["_modules"]
    modules["renderer"] = renderer
    modules["ray_sampler"] = CLASSES["training.volumetric_rendering.ray_sampler", "RaySampler"]()
    arguments = EasyDict(tiny_arguments(family))
    generator.values |= {
        "neural_rendering_resolution": resolution, "rendering_kwargs": arguments, "_init_args": (),
        "_init_kwargs": EasyDict(z_dim=6, rendering_kwargs=arguments),
    }  # fmt: skip
    generator.class_name = "TriPlaneGenerator"
    return {"training_set_kwargs": EasyDict(path="x"), "G": None, "D": None, "G_ema": generator, "augment_pipe": None}


def write_published(
    path: Path, family: str, source: str = "", protocol: int = 4, seed: int = 0, state: dict | None = None, **kwargs
) -> dict:
    """Write a tiny published checkpoint; returns its state dict."""
    state = random_state(tiny_sizes(family), seed) if state is None else state
    with installed(), open(path, "wb") as file:
        pickle.dump(published_object(family, state, source, **kwargs), file, protocol=protocol)
    return state
