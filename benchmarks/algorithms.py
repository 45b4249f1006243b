"""Every algorithm on one data set, by the command that users type: returns of all seeds, curves, times and memory.

An interrupted benchmark goes on where it was, with the same command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS

from om2p_data import dataset
from om2p_data.inspect import drawing
from om2p_data.measuring import QUIET_POOLS, ensure_environment, print_table, write_results
from om2p_data.storage import parse_id
from om2p_train import results
from om2p_train.reporting import figures
from om2p_train.run_folder import RUN_FILE

_RUN = [sys.executable, "-c", "from om2p_cli.train import main; main()", "run", "--quiet", "--no-tensorboard"]
_RECIPES = ["bc", "bc-flow", "om2p", "om2p-paper", "om2p-released", "ma-cql", "omar", "ma-fql", "ma-sfbc", "vgm2p"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="data set id; generate it first")
    parser.add_argument(
        "--recipes",
        nargs="*",
        default=_RECIPES,
        metavar="NAME[,KEY=VALUE...]",
        help=f"each with overrides of its own, if need be (default: {' '.join(_RECIPES)})",
    )
    parser.add_argument("--seeds", default="0-4", help="stacked in one run (default: 0-4)")
    parser.add_argument("--scale", default="cpu", help="of the recipes (default: cpu)")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of every recipe")
    parser.add_argument("--threads", type=int, default=None, help="of the CPU (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    environment = ensure_environment(QUIET_POOLS)
    data = dataset.load(arguments.dataset)
    parsed = parse_id(data.id)
    recipes = [entry.split(",") for entry in arguments.recipes]
    folders = [arguments.runs / parsed.task / parsed.tier / name for name, *_ in recipes]
    rows = [
        _trained(name, [*arguments.set, *own], folder, arguments)
        for (name, *own), folder in zip(recipes, folders, strict=True)
    ]
    shown = ("recipe", "mean", "std", "lowest", "highest", "updates", "updates_per_second", "peak_mb")
    print_table([{key: row[key] for key in shown} for row in rows])
    found = results.gather(folders)
    runs = found.runs
    returns = data.episodes.team_returns
    settings: dict[str, Any] = {
        "dataset": data.id,
        "dataset_hash": data.metadata["content_hash"],
        "transitions": data.episodes.num_transitions,
        "dataset_mean": round(float(returns.mean()), 2),
        "dataset_std": round(float(returns.std()), 2),
        "random_mean": None if runs[0].random_return is None else round(runs[0].random_return, 2),
        "scale": arguments.scale,
        "set": arguments.set,
        "device": arguments.device,
        "environment": environment,
    }
    name = f"algorithms_{data.task.alias if data.task is not None else parsed.task}_{parsed.tier}"
    write_results(arguments.out / f"{name}.json", rows, settings, "om2p", "torch", "numpy", "minari")
    drawing.save_all({name: lambda theme: figures.curves(found, theme)}, arguments.out)


def _trained(name: str, settings: list[str], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run by a process of its own; what was trained before is read."""
    command = [*_RUN, "--algo", name, "--dataset", arguments.dataset, "--seeds", arguments.seeds, "--resume"]
    command += ["--scale", arguments.scale, "--device", arguments.device, "--out", str(folder)]
    for setting in settings:
        command += ["--set", setting]
    if arguments.threads is not None:
        command += ["--threads", str(arguments.threads)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"recipe {name} failed")
    run = results.read(folder)
    timing = json.loads((folder / RUN_FILE).read_text())["timing"]
    final = run.final
    return {
        "recipe": name,
        "mean": round(float(final.mean()), 2),
        "std": round(float(final.std(ddof=1)), 2) if len(final) > 1 else None,
        "lowest": round(float(final.min()), 2),
        "highest": round(float(final.max()), 2),
        "seeds": np.round(final, 2).tolist(),
        "updates": int(run.updates[-1]),
        "updates_per_second": round(timing["updates_per_second"], 1),
        "peak_mb": round(timing["peak_memory_mb"]),
        "curve_updates": run.updates.tolist(),
        "curve": np.round(run.returns, 2).tolist(),  # [evaluations][seeds]
    }


if __name__ == "__main__":
    main()
