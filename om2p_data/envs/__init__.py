"""Worlds by name: batched (`make`) and as PettingZoo parallel environments (`parallel_env`)."""

from __future__ import annotations

import functools

from om2p_data.envs.adapters import ParallelWorld, TeamEnv
from om2p_data.envs.particle import DiscreteParticleEnv, NetworkPrey, ParticleEnv, Prey
from om2p_data.envs.registry import TASKS, Family, Task, find
from om2p_data.envs.vector import VectorEnv
from om2p_data.errors import UserError

__all__ = [
    "TASKS",
    "Family",
    "NetworkPrey",
    "ParallelWorld",
    "Prey",
    "Task",
    "TeamEnv",
    "VectorEnv",
    "find",
    "make",
    "parallel_env",
]


def make(
    name: str,
    num_envs: int = 1,
    seed: int = 0,
    *,
    threads: int | None = None,
    prey: Prey | None = None,
) -> VectorEnv:
    """Many copies of a task, stepped together.

    Args:
        name: name or alias, e.g. `cn` or `cooperative-navigation`.
        num_envs: how many copies.
        seed: where the random starts come from; the same seed gives the same episodes on any number of threads.
        threads: threads to step with; by default all cores.
        prey: whom the predators of `pp` and `world` chase; by default the frozen prey that ships with the package.

    Raises:
        UserError: no such task, or a prey where there is none.
    """
    task = find(name)
    if num_envs < 1:
        raise UserError(f"num_envs must be 1 or more, not {num_envs}")
    if task.family is Family.PARTICLE:
        world = DiscreteParticleEnv if task.discrete else ParticleEnv
        return world(task, num_envs, seed, threads=threads, prey=prey)
    if prey is not None:
        raise UserError(f"{task.name} has no prey: leave `prey` out")
    # MuJoCo takes half a second to import, which the particle worlds need not pay.
    from om2p_data.envs.locomotion import LocomotionEnv

    return LocomotionEnv(task, num_envs, seed, threads=threads)


def parallel_env(name: str, *, render_mode: str | None = None, prey: Prey | None = None) -> ParallelWorld:
    """A task as a PettingZoo `ParallelEnv`.

    Args:
        name: name or alias.
        render_mode: None or "rgb_array".
        prey: as in `make`.
    """
    task = find(name)
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"render_mode must be None or 'rgb_array', not {render_mode!r}")
    return ParallelWorld(task, functools.partial(make, name, threads=1, prey=prey), render_mode)
