"""What a run is to train, on what and where; and what its run.json says of that."""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from om2p_data.dataset import Dataset
from om2p_data.errors import UserError
from om2p_data.measuring import cpu_model
from om2p_data.provenance import commit
from om2p_train.arena import obstacle, random_return
from om2p_train.compute import own_threads, usable_device
from om2p_train.config import TrainRecipe

_PACKAGES = ("om2p", "torch", "numpy", "minari")


@dataclass(frozen=True)
class RunPlan:
    """A recipe, a data set, seeds, a folder for the run's files, and a device."""

    dataset: Dataset
    recipe: TrainRecipe
    seeds: list[int]
    folder: Path
    device: torch.device

    @classmethod
    def of(cls, dataset: Dataset, recipe: TrainRecipe, seeds: Sequence[int], folder: Path, device: str) -> RunPlan:
        """What was asked for, if it can be done.

        Raises:
            UserError: no seeds or a seed twice, a batch larger than the data, more behaviour teams than episodes, or
                no such device.
        """
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise UserError(f"seeds must be different numbers from 0 up, not {list(seeds)}")
        transitions, batch_size = dataset.episodes.num_transitions, recipe.optimizer.batch_size
        if batch_size > transitions:
            raise UserError(
                f"optimizer.batch_size is {batch_size} and {dataset.id} has {transitions} transitions: set it lower"
            )
        teams, episodes = recipe.data.behavior_teams, dataset.episodes.num_episodes
        if isinstance(teams, int) and teams > episodes:
            raise UserError(
                f"data.behavior_teams is {teams} and {dataset.id} has {episodes} episodes, of which each needs some: "
                f"set it lower"
            )
        return cls(dataset, recipe, list(seeds), folder, usable_device(device))

    @property
    def label(self) -> str:
        """Recipe and task, for those who look on."""
        task = self.dataset.task
        return f"{self.recipe.name} {self.task_name if task is None else task.alias}"

    @property
    def task_name(self) -> str:
        """Full name of the environment."""
        return self.dataset.environment.name

    @functools.cached_property
    def obstacle(self) -> str | None:
        """Why nobody can play the data set's environment here, None if it can be played."""
        return obstacle(self.dataset.environment)

    def identity(self) -> dict[str, Any]:
        """What makes a run this one: going on with it takes the same."""
        return {
            "algorithm": self.recipe.algorithm,
            "recipe_name": self.recipe.name,
            "scale": self.recipe.scale.value,
            "recipe": self.recipe.tables(),
            "task": self.task_name,
            "dataset": self.dataset.id,
            "dataset_hash": self.dataset.metadata["content_hash"],
            "seeds": self.seeds,
            "device": self.device.type,
        }

    def circumstances(self) -> dict[str, Any]:
        """What else is worth knowing about a run that begins now."""
        cuda = self.device.type == "cuda"
        with own_threads():
            random = random_return(self.dataset.environment) if self.obstacle is None else None
        return {
            "settings": list(self.recipe.settings),
            "dataset_card": self.dataset.card(),
            "dataset_return_mean": float(self.dataset.episodes.team_returns.mean()),
            "random_return_mean": random,
            "hardware": torch.cuda.get_device_name(self.device) if cuda else cpu_model(),
            "threads": torch.get_num_threads(),
            "started": now(),
            **code(),
            "resumed": [],
            "finished": False,
        }


def code() -> dict[str, Any]:
    """Versions of what computes, and the commit of this project."""
    versions = {name: metadata.version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return {"versions": versions, "commit": commit()}


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
