"""Nested states of a running program as one file that cannot run code: tensors in safetensors, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from om2p_data import tensor_file
from om2p_data.errors import UserError

_TENSOR = "tensor"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state: dictionaries and lists of tensors and JSON values, to any depth. Dictionary keys become text.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _take_out(state, "", tensors)
    tensor_file.write(path, tensors, {"state": json.dumps(skeleton)})


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        tensors, metadata = tensor_file.read(path)
        return _put_back(json.loads(metadata["state"]), tensors.__getitem__)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}; delete it to start anew") from error


def _take_out(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {"items": {str(key): _take_out(item, f"{name}/{key}", tensors) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [_take_out(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    return value


def _put_back(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensor(value[_TENSOR])
        return {key: _put_back(item, tensor) for key, item in value["items"].items()}
    if isinstance(value, list):
        return [_put_back(item, tensor) for item in value]
    return value


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of an optimiser whose parameters stay in their order: by parameter index."""
    return {str(index): slots for index, slots in optimizer.state_dict()["state"].items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """The inverse of `optimizer_state`."""
    whole = optimizer.state_dict()
    optimizer.load_state_dict(whole | {"state": {int(index): slots for index, slots in state.items()}})
