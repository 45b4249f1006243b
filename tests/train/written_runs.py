"""Run folders with returns of one's choice, as the trainer writes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from om2p_data.envs import find
from om2p_data.tiers import Tier
from om2p_train import config
from om2p_train.config import Scale


def write_run(
    folder: Path,
    algo: str = "bc",
    returns: Sequence[Sequence[float]] = ((10.0, 20.0, 30.0), (40.0, 50.0, 60.0)),
    *,
    task: str = "cn",
    tier: str = "medium",
    settings: Sequence[str] = (),
    scale: Scale = Scale.CPU,
    finished: bool = True,
    first_seed: int = 0,
    **changes: Any,
) -> Path:
    """A run with these returns, one row an evaluation and one column a seed; each is the mean of two episodes."""
    name = find(task).name
    recipe = config.load(algo, name, Tier.parse(tier), scale, settings)
    seeds = list(range(first_seed, first_seed + len(returns[0])))
    run = {"updates": 100 * len(returns), "evaluate_every": 100, "evaluation_episodes": 2}
    tables = recipe.tables() | {"run": recipe.tables()["run"] | run}
    facts = {
        "algorithm": recipe.algorithm,
        "recipe_name": recipe.name,
        "scale": scale.value,
        "recipe": tables,
        "task": name,
        "dataset": f"om2p/{name}/{tier}-v0",
        "dataset_hash": f"hash of {name} {tier}",
        "seeds": seeds,
        "device": "cpu",
        "tensorboard": False,
        "wandb": None,
        "settings": list(settings),
        "dataset_card": {
            "summary": "a task",
            "tier": tier,
            "episodes": 40,
            "transitions": 1000,
            "team_return": {"mean": 273.0, "std": 12.5},
            "policies": [{"name": tier, "algorithm": "matd3", "seed": 7, "return_mean": 271.0, "episodes": 40}],
        },
        "dataset_return_mean": 273.0,
        "random_return_mean": 160.5,
        "hardware": "a machine",
        "threads": 1,
        "started": "2026-01-02T03:04:05+00:00",
        "versions": {"om2p": "0.1.0"},
        "commit": "abcdef",
        "resumed": [],
        "finished": finished,
        "timing": {
            "training_seconds": 60.0,
            "evaluation_seconds": 3.5,
            "updates_per_second": 50.0,
            "peak_memory_mb": 512.0,
        },
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(facts | changes))
    with (folder / "evaluations.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("update", "seed", "episode", "return"))
        for index, row in enumerate(returns):
            for seed, value in zip(seeds, row, strict=True):
                rows.writerows((100 * (index + 1), seed, episode, value + off) for episode, off in ((0, -5), (1, 5)))
    return folder
