"""Every tier of a task, generated from nothing: sizes, returns and times beside the published data sets."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from common import QUIET_POOLS, RESULTS, ensure_environment, print_table, write_results

from om2p_data import generation, tiers
from om2p_data.envs import find
from om2p_data.tiers import Tier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="cn", help="task (default: cn)")
    parser.add_argument("--transitions", type=int, default=100_000, help="of each tier (default: 100,000)")
    parser.add_argument("--seed", type=int, default=0, help="of training and rollouts (default: 0)")
    arguments = parser.parse_args()
    environment = ensure_environment(QUIET_POOLS)
    task = find(arguments.env)
    config = tiers.load_recipe(task, None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OM2P_HOME"] = str(Path(folder, "behaviour"))
        for tier in Tier:
            count = None if tier is Tier.MEDIUM_REPLAY else arguments.transitions
            start = time.perf_counter()
            made = generation.generate(
                task, tier, config, transitions=count, seed=arguments.seed, root=Path(folder, "datasets")
            )
            seconds = time.perf_counter() - start
            returns = made.collected.episodes.team_returns
            rows.append(
                {
                    "tier": tier.value,
                    "transitions": made.collected.episodes.num_transitions,
                    "episodes": len(returns),
                    "return": float(returns.mean()),
                    "std": float(returns.std()),
                    "min": float(returns.min()),
                    "max": float(returns.max()),
                    "published": getattr(task.returns, tier.name.lower(), None),
                    "expert_share": sum(
                        int(made.collected.episodes.lengths[made.collected.episodes.policy == index].sum())
                        for index, policy in enumerate(made.collected.policies)
                        if policy.name == "expert"
                    )
                    / made.collected.episodes.num_transitions,
                    "seconds": seconds,
                }
            )
    print_table(rows)
    settings = {"task": task.name, "seed": arguments.seed, "environment": environment}
    write_results(RESULTS / f"tiers_{task.alias}.json", rows, settings, "om2p", "torch", "numba", "numpy", "minari")


if __name__ == "__main__":
    main()
