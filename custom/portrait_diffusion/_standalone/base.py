"""Configured objects and the update protocol: children are told the step before their parents."""
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from .config import parse_structured
from .misc import get_device, load_module_weights


class Updateable:
    """Has `update_step` called before and `update_step_end` after each batch, its public attributes' ones first.

    Only direct public attributes are visited: nothing inside lists or dicts and nothing that starts with '_'.
    An object reached by two ways is updated twice, so `update_step` must be idempotent.
    """

    def do_update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Update the children, then self."""
        for child in _children(self):
            child.do_update_step(epoch, global_step, on_load_weights=on_load_weights)
        self.update_step(epoch, global_step, on_load_weights=on_load_weights)

    def do_update_step_end(self, epoch: int, global_step: int) -> None:
        """As `do_update_step`, after the batch; in training `global_step` is one higher than before it."""
        for child in _children(self):
            child.do_update_step_end(epoch, global_step)
        self.update_step_end(epoch, global_step)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Override to follow a schedule. With `on_load_weights` evaluate no network: devices may differ."""

    def update_step_end(self, epoch: int, global_step: int) -> None:
        """Override to act after the batch."""


def _children(parent: Any) -> list[Updateable]:
    found = []
    for name in parent.__dir__():
        if name.startswith("_"):
            continue
        try:
            value = getattr(parent, name)
        except Exception:  # noqa: S112 - properties such as a system's `trainer` raise until they are usable
            continue
        if isinstance(value, Updateable):
            found.append(value)
    return found


def update_if_possible(module: Any, epoch: int, global_step: int) -> None:
    """Update any object that follows the protocol; others are left alone."""
    if isinstance(module, Updateable):
        module.do_update_step(epoch, global_step)


def update_end_if_possible(module: Any, epoch: int, global_step: int) -> None:
    """As `update_if_possible`, after the batch."""
    if isinstance(module, Updateable):
        module.do_update_step_end(epoch, global_step)


class BaseObject(Updateable):
    """Configured object without parameters: exporters, frozen models. Override `configure`, not `__init__`."""

    @dataclass
    class Config:
        pass

    cfg: Config

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self.device = get_device()
        self.configure(*args, **kwargs)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Override to build the object; `self.cfg` and `self.device` are set."""


class BaseModule(nn.Module, Updateable):
    """Configured nn.Module; its parameters are optimised and saved. Override `configure`, not `__init__`.

    `device` is where the module was made; it doesn't follow `.to()`, the empty buffer `_dummy` does.
    """

    @dataclass
    class Config:
        weights: str | None = None  # "checkpoint.ckpt:module_name", loaded strictly after configure()

    cfg: Config

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self.device = get_device()
        self.configure(*args, **kwargs)
        if self.cfg.weights is not None:
            self._load(self.cfg.weights)
        self.register_buffer("_dummy", torch.zeros(0), persistent=False)

    def _load(self, weights: str) -> None:
        path, colon, name = weights.rpartition(":")
        if not colon or not path or not name:
            raise UsageError(f"weights must look like 'path.ckpt:module_name', got '{weights}'.")
        state_dict, epoch, global_step = load_module_weights(path, module_name=name, map_location="cpu")
        self.load_state_dict(state_dict)
        self.do_update_step(epoch, global_step, on_load_weights=True)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Override to build layers; `self.cfg` and `self.device` are set."""
