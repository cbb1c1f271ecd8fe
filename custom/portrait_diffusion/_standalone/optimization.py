"""Optimizers and learning-rate schedules from configuration."""
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn, optim
from torch.optim import lr_scheduler

from ..errors import UsageError


def parse_optimizer(config: Any, model: nn.Module) -> optim.Optimizer:
    """Build ``torch.optim.{name}`` with ``args``.

    Args:
        config: ``{name, args, params}``; `params` maps attribute paths on `model` (``geometry.encoding``) to arguments
            of their own, and then only those are optimised; without it everything is.
        model: whose parameters are meant.

    Raises: UsageError for an unknown optimizer or a path that leads to no module or parameter.
    """
    config = _plain(config)
    if config.get("params"):
        groups = [{"params": _parameters(model, path), "name": path, **args} for path, args in config["params"].items()]
    else:
        groups = model.parameters()
    cls = _lookup(optim, str(config.get("name", "")), optim.Optimizer, "optimizer")
    return _made("optimizer", config, cls, groups)


def parse_scheduler(config: Any, optimizer: optim.Optimizer) -> dict[str, Any]:
    """Build a learning-rate schedule in pytorch-lightning's form ``{"scheduler", "interval"}``.

    Args:
        config: ``{name, interval: step|epoch, args}``; ``SequentialLR`` (with `milestones`) and ``ChainedScheduler``
            take a list `schedulers` of the same form instead of `args`.

    Raises: UsageError for an unknown name or interval.
    """
    config = _plain(config)
    interval = config.get("interval", "epoch")
    if interval not in ("step", "epoch"):
        raise UsageError(f"scheduler.interval must be 'step' or 'epoch', got '{interval}'.")
    cls = _lookup(lr_scheduler, str(config.get("name", "")), lr_scheduler.LRScheduler, "scheduler")
    if cls in (lr_scheduler.SequentialLR, lr_scheduler.ChainedScheduler):
        parts = [parse_scheduler(part, optimizer)["scheduler"] for part in config["schedulers"]]
        if cls is lr_scheduler.SequentialLR:
            return {"scheduler": cls(optimizer, parts, milestones=config["milestones"]), "interval": interval}
        return {"scheduler": cls(parts, optimizer=optimizer), "interval": interval}
    return {"scheduler": _made("scheduler", config, cls, optimizer), "interval": interval}


def _plain(config: Any) -> dict[str, Any]:
    """Plain containers only: an OmegaConf list in an optimizer would make its checkpoint unloadable."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else dict(config)


def _made(kind: str, config: dict, cls: type, first: Any) -> Any:
    try:
        return cls(first, **config.get("args", {}))
    except (TypeError, ValueError) as error:
        told = {key: config[key] for key in ("args", "params") if config.get(key)}
        raise UsageError(f"{kind} {config['name']} cannot be made with {told}: {error}.") from error


def _parameters(model: nn.Module, path: str) -> list[nn.Parameter]:
    target: Any = model
    for name in path.split("."):
        target = getattr(target, name, None)
    if isinstance(target, nn.Parameter):
        return [target]
    if isinstance(target, nn.Module):
        return list(target.parameters())
    raise UsageError(f"optimizer.params names '{path}', but {type(model).__name__} has no such module or parameter.")


def _lookup(namespace: Any, name: str, base: type, kind: str) -> Any:
    cls = getattr(namespace, name, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        known = sorted(n for n, c in vars(namespace).items() if isinstance(c, type) and issubclass(c, base))
        raise UsageError(f"Unknown {kind} '{name}'; torch {torch.__version__} has {', '.join(known)}.")
    return cls
