"""Whole runs that are small enough for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from om2p_data import dataset as datasets
from om2p_data.behavior.policy import UniformPolicy
from om2p_data.dataset import Dataset
from om2p_data.envs import find, make
from om2p_data.metadata import BehaviorPolicy
from om2p_data.rollout import rollout
from om2p_data.spec import EnvironmentCard
from om2p_train import config, trainer

DATASET = "om2p/cooperative-navigation/random-v0"
SETTINGS = (
    "network.hidden=[16,16]",
    "optimizer.batch_size=16",
    "run.updates=30",
    "run.evaluate_every=10",
    "run.evaluation_episodes=8",
    "run.log_every=10",
)
_OWN = {
    "om2p": ("options.eta=1.0",),
    "ma-sfbc": (
        "options.score_hidden=[16,16]",
        "options.candidates=3",
        "options.solver_evaluations=3",
        "options.planning_samples=2",
    ),
}


def make_dataset(root: Path, transitions: int = 1000, seed: int = 0) -> Dataset:
    """Uniform actions in Cooperative Navigation."""
    task = find("cn")
    episodes = rollout(UniformPolicy(task), make("cn", 20, threads=1), transitions, seed=seed)
    policy = BehaviorPolicy("random", "uniform", 0, 0, "", 0.0, 0.0, episodes.num_episodes)
    datasets.write(
        DATASET,
        episodes,
        environment=EnvironmentCard.of(task),
        policies=[policy],
        collection={},
        overwrite=True,
        root=root,
        progress=False,
    )
    return datasets.load(DATASET, root)


def run(
    data: Dataset, folder: Path, *settings: str, algo: str = "om2p", seeds: Sequence[int] = (0, 1), **options: Any
) -> Path:
    """Train, and say where."""
    recipe = config.load(algo, "cooperative-navigation", None, settings=[*SETTINGS, *_OWN.get(algo, ()), *settings])
    trainer.train(data, recipe, list(seeds), folder, progress=False, **options)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """The files of a run that an interruption must not change."""
    files = [folder / "metrics.csv", folder / "evaluations.csv", *(folder / "policies").iterdir()]
    return {path.name: path.read_bytes() for path in files}


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
