"""How long behaviour training takes to land on a task's levels, over several seeds; every run starts from nothing."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from common import RESULTS

from om2p_data import tiers
from om2p_data.behavior import training
from om2p_data.behavior.config import LEVELS
from om2p_data.envs import find
from om2p_data.measuring import QUIET_POOLS, ensure_environment, print_table, write_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="cn", help="task (default: cn)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/behavior_<alias>.json)")
    arguments = parser.parse_args()
    environment = ensure_environment(QUIET_POOLS)
    task = find(arguments.env)
    config = tiers.load_recipe(task, None).behavior
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OM2P_HOME"] = folder
        for seed in range(arguments.seeds):
            training.train(task, config, seed)
            for level in LEVELS:
                card = training.obtain(task, level, config, seed, fresh=True).card
                rows.append(
                    {
                        "task": task.name,
                        "seed": seed,
                        "level": level,
                        "published": getattr(config.levels, level),
                        "return": card["return_mean"],
                        "std": card["return_std"],
                        "episodes": card["episodes"],
                        "algorithm": card["algorithm"],
                        "seconds": card["seconds"],
                        "updates": card["updates"],
                        "env_steps": card["env_steps"],
                    }
                )
    print_table(rows)
    out = arguments.out or RESULTS / f"behavior_{task.alias}.json"
    recipe = config.model_dump(mode="json", exclude_none=True)
    settings = {"seeds": arguments.seeds, "environment": environment, "recipe": recipe}
    write_results(out, rows, settings, "om2p", "torch", "numba", "numpy")


if __name__ == "__main__":
    main()
