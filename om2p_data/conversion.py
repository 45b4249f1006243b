"""Between what somebody's agents see and do and the vectors that data sets hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from om2p_data.errors import UserError

_OUTSIDE = 1e-5  # share of a bound by which an action may leave it: what rounding does to squashed actions


def stored_name(agent: Any) -> str:
    """The name under which data sets hold an agent: numbers and slashes are replaced."""
    return f"agent_{agent}" if isinstance(agent, int) else str(agent).replace("/", "_")


def observation_vector(space: spaces.Space, value: Any) -> np.ndarray:
    """An observation, flattened as Gymnasium does it, float32 [O].

    Bounds are not looked at: many environments see farther than they declare.

    Raises:
        UserError: it is not of the space's form, or not finite; the message is a predicate: "has shape (4,), not (5,)".
    """
    checked = _checked(space, value)
    # What is an array already need not go through Gymnasium's dispatch, which takes longer than all the rest.
    flat = checked if isinstance(space, spaces.Box) else np.asarray(spaces.flatten(space, checked))
    with np.errstate(over="ignore"):
        vector = flat.reshape(-1).astype(np.float32)
    if not np.isfinite(vector).all():
        raise UserError("holds NaN or infinity")
    return vector


def action_converter(space: spaces.Space) -> Callable[[Any], np.ndarray | None]:
    """What turns an action for the environment into a vector, a choice one-hot, float32 [A]; None if it is outside.

    Args:
        space: Box or Discrete.
    """
    if isinstance(space, spaces.Discrete):
        start, one_hot = int(space.start), np.eye(int(space.n), dtype=np.float32)

        def choice(value: Any) -> np.ndarray | None:
            array = np.asarray(value)
            if array.size != 1 or array.dtype.kind not in "iu":
                return None
            index = int(array.item()) - start
            return one_hot[index] if 0 <= index < len(one_hot) else None

        return choice
    assert isinstance(space, spaces.Box)
    # Without a bound, the largest finite number is one: infinite actions are outside everywhere.
    low, high = (np.nan_to_num(bound.astype(np.float32).reshape(-1)) for bound in (space.low, space.high))
    low, high = low - _OUTSIDE * np.abs(low).clip(max=1e30), high + _OUTSIDE * np.abs(high).clip(max=1e30)

    def vector(value: Any) -> np.ndarray | None:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or array.size != len(low):
            return None
        with np.errstate(over="ignore"):
            flat = array.reshape(-1).astype(np.float32)
        return flat if ((flat >= low) & (flat <= high)).all() else None

    return vector


def own_action(space: spaces.Space, stored: Any) -> Any:
    """The inverse, for actions as the HDF5 file has them: vectors, and choices counted from 0."""
    if isinstance(space, spaces.Discrete):
        return int(stored) + int(space.start)
    assert isinstance(space, spaces.Box)
    return np.asarray(stored, space.dtype).reshape(space.shape)


def padded(vectors: Mapping[int, np.ndarray], agents: int, size: int) -> np.ndarray:
    """Vectors by agent index as rows, float32 [agents, size], zeros where there is nothing."""
    rows = np.zeros((agents, size), np.float32)
    for index, vector in vectors.items():
        rows[index, : len(vector)] = vector
    return rows


def _checked(space: spaces.Space, value: Any) -> Any:
    """The value in the types of its space; Gymnasium's own flattening would wrap and cut what does not fit."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            raise UserError(f"is {type(value).__name__}, not a dictionary")
        missing = [key for key in space.spaces if key not in value]
        if missing:
            raise UserError(f"holds no {missing[0]!r}")
        return {key: _checked(part, value[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            raise UserError(f"is no tuple of {len(space.spaces)}")
        return tuple(_checked(part, item) for part, item in zip(space.spaces, value, strict=True))
    if not isinstance(space, spaces.Box):
        if not space.contains(value):
            raise UserError(f"is {value!r}, outside its space {space}")
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise UserError("is no array: its rows differ in length") from None
    if array.dtype.kind not in "fiub":
        raise UserError(f"is no array of numbers but {type(value).__name__}")
    if array.shape != space.shape:
        raise UserError(f"has shape {array.shape}, not {space.shape}")
    if array.dtype == space.dtype:
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(space.dtype)
    if cast.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise UserError(f"holds values that are no {space.dtype}")
    return cast
