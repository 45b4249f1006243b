"""One call from a task and a tier to a data set on the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from om2p_data import dataset, tiers
from om2p_data.envs import make
from om2p_data.envs.registry import Task
from om2p_data.hdf5 import Layout
from om2p_data.provenance import origin
from om2p_data.spec import EnvironmentCard
from om2p_data.tiers import Collected, DataRecipe, Tier

_RECORDED_PACKAGES = ("om2p", "numpy", "numba", "torch", "mujoco", "minari")


@dataclass(frozen=True)
class Generated:
    """A data set that was just written."""

    dataset_id: str
    folder: Path
    collected: Collected


def generate(
    task: Task,
    tier: Tier,
    config: DataRecipe,
    *,
    transitions: int | None = None,
    expert_share: float | None = None,
    seed: int = 0,
    fresh: bool = False,
    version: int = 0,
    root: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Generated:
    """Collect a tier and write it as the Minari data set `om2p/<task>/<tier>-v<version>`.

    Args: as `tiers.collect`, and
        version: N in the data set's id.
        root: folder of all data sets; by default Minari's.
        overwrite: replace a data set of that id.

    Raises:
        UserError: what `tiers.collect` and `dataset.write` refuse. Whether the data set can be written is found out
            before anything is collected.
    """
    dataset_id = f"om2p/{task.name}/{tier.value}-v{version}"
    environment = EnvironmentCard.of(task)
    dataset.ensure_free(dataset_id, overwrite, root, expected=_expected(environment, tier, transitions))
    collected = tiers.collect(
        task,
        tier,
        config,
        transitions=transitions,
        expert_share=expert_share,
        seed=seed,
        fresh=fresh,
        progress=progress,
    )
    collection = {
        "seed": seed,
        **origin(_RECORDED_PACKAGES),
        "transitions_requested": transitions,
        "expert_share_requested": expert_share,
        "recipe": config.model_dump(mode="json"),
        "prey": make(task.name).prey_identity,
        "teams": {team.level: team.card for team in collected.teams},
    }
    folder = dataset.write(
        dataset_id,
        collected.episodes,
        environment=environment,
        policies=collected.policies,
        collection=collection,
        overwrite=overwrite,
        root=root,
        progress=progress,
    )
    return Generated(dataset_id, folder, collected)


def _expected(environment: EnvironmentCard, tier: Tier, transitions: int | None) -> Layout | None:
    """How much is about to be written; nobody knows when a replay memory reaches its level."""
    if transitions is None and tier is Tier.MEDIUM_REPLAY:
        return None
    wanted = tiers.DEFAULT_TRANSITIONS if transitions is None else transitions
    assert environment.horizon is not None
    return Layout(environment.spec, (), -(-wanted // environment.horizon), wanted, agents_end_together=True)
