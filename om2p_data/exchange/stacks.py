"""What formats have in common that keep the agents side by side, (T, N, ...), without final observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from om2p_data.errors import UserError
from om2p_data.exchange import fields
from om2p_data.exchange.transitions import Transitions

V = TypeVar("V")
Named = tuple[str, np.ndarray]  # how messages call an array, and the array


def from_stacks(arrays: Mapping[str, Named], choices: int | None = None) -> Transitions:
    """Transitions from arrays over all steps and agents.

    Args:
        arrays: `obs` [T, N, O], `actions` [T, N, A] or [T, N]; `rewards`, `dones`, and maybe `truncated` [T, N], or [T]
            where all agents share them, with or without a last dimension of one; maybe `state` [T, S] or [T, N, S].
        choices: how many discrete actions there are, where the data say it.

    Raises:
        UserError: an array of another shape or type, or with NaN; the message names it.
    """
    label, obs = arrays["obs"]
    if obs.ndim != 3:
        raise UserError(f"{label} has shape {obs.shape}; (transitions, agents, components) is needed")
    rows, agents = obs.shape[:2]

    def each(name: str, convert: Callable[[np.ndarray, str], V]) -> list[V]:
        label, values = arrays[name]
        if values.ndim < 2 or values.shape[1] != agents:
            raise UserError(f"{label} has shape {values.shape}; (transitions, {agents} agents, ...) is needed")
        return [convert(values[:, agent], label) for agent in range(agents)]

    def shared(name: str, convert: Callable[[np.ndarray, str, int], np.ndarray]) -> np.ndarray:
        label, values = arrays[name]
        values = values[..., 0] if values.ndim > 1 and values.shape[-1] == 1 else values
        if values.ndim == 1:
            return np.repeat(convert(values, label, rows)[:, None], agents, axis=1)
        return np.stack(each(name, lambda column, label: convert(column, label, rows)), axis=1)

    state = None
    if "state" in arrays:
        label, values = arrays["state"]
        if values.ndim == 2:
            state = fields.numbers(values, label, rows)
        else:
            state = fields.common_state(each("state", lambda column, label: fields.numbers(column, label, rows)))
    taken = each("actions", lambda column, label: fields.actions(column, label, rows, choices))
    discrete = tuple(chosen for _, chosen in taken)
    width = max(array.shape[1] for array, _ in taken)
    return Transitions(
        obs=tuple(each("obs", lambda column, label: fields.numbers(column, label, rows))),
        # Agents that share one array share their choices, though not each may have made the last of them.
        actions=tuple(np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array, _ in taken),
        discrete=discrete,
        rewards=shared("rewards", fields.single),
        dones=shared("dones", fields.flags),
        truncated=shared("truncated", fields.flags) if "truncated" in arrays else None,
        state=state,
    )
