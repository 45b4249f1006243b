"""Between an environment's own actions and the box [-1, 1] in which policies act."""

from __future__ import annotations

import numpy as np

from om2p_data.errors import UserError
from om2p_data.spec import TeamSpec


def action_bounds(spec: TeamSpec) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds of continuous actions, float32 [N, A] each; None where all are -1 and 1.

    Raises:
        UserError: an action without bounds.
    """
    if spec.action_low is None or spec.action_high is None or any(spec.discrete):
        return None
    low, high = (np.full((spec.num_agents, spec.act_dim), side, np.float32) for side in (-1.0, 1.0))
    for index, size in enumerate(spec.act_dims):
        low[index, :size], high[index, :size] = spec.action_low[index], spec.action_high[index]
        if not (np.isfinite(low[index]).all() and np.isfinite(high[index]).all()):
            raise UserError(f"the actions of {spec.agents[index]!r} have no bounds, and policies act within bounds")
    return None if (low == -1).all() and (high == 1).all() else (low, high)


def to_unit(actions: np.ndarray, spec: TeamSpec) -> np.ndarray:
    """Stored actions [M, N, A] moved from their own bounds to [-1, 1]; padding stays 0, and choices one-hot."""
    bounds = action_bounds(spec)
    if bounds is None:
        return actions
    low, high = bounds
    return np.where(spec.padding[1], 0.0, 2.0 * (actions - low) / (high - low) - 1.0).astype(np.float32)


def from_unit(actions: np.ndarray, spec: TeamSpec) -> list[np.ndarray]:
    """A policy's actions [N, B, A] as each agent's environment takes them: [B, A_i], or int64 [B] for choices."""
    if spec.discrete[0]:
        return list(actions.argmax(-1))
    bounds = action_bounds(spec)
    if bounds is not None:
        low, high = bounds
        low, high = low[:, None], high[:, None]
        actions = (low + (actions + 1.0) / 2.0 * (high - low)).clip(low, high)  # rounding may not leave the space
    return [one[:, :size] for one, size in zip(actions, spec.act_dims, strict=True)]
