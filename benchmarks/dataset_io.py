"""Time and disk space of data sets: ours beside stock Minari's writer and reader, on random data in one run.

    python benchmarks/dataset_io.py [--transitions 1000000] [--stock-share 0.1] [--tasks cn hc] [--folder DIR]

Prints a table and writes benchmarks/results/dataset_io.json. Stock Minari works on a share of the episodes, and its
figures are scaled up to all of them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from om2p_data import dataset
from om2p_data.dataset import BehaviorPolicy
from om2p_data.envs.adapters import action_box, observation_box
from om2p_data.envs.registry import Task, find
from om2p_data.episodes import Episodes

RESULTS = Path(__file__).parent / "results" / "dataset_io.json"
PACKAGES = ("minari", "h5py", "numpy", "gymnasium")
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--transitions", type=int, default=1_000_000, help="size of each data set")
    parser.add_argument("--stock-share", type=float, default=0.1, help="share of the episodes given to stock Minari")
    parser.add_argument("--tasks", nargs="+", default=["cn", "hc"], help="tasks whose shapes are taken")
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file for the results")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        for name in options.tasks:
            task = find(name)
            episodes = random_episodes(task, options.transitions // task.horizon)
            row = measure_ours(task, episodes) | measure_stock(task, episodes, options.stock_share)
            rows.append(row)
            print(table(row))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"written to {options.output}")


def random_episodes(task: Task, count: int) -> Episodes:
    """Whole episodes of the task's shapes and horizon that run into the time limit."""
    rng = np.random.default_rng(0)
    steps, rows, agents = count * task.horizon, count * (task.horizon + 1), task.num_agents
    truncated = np.zeros((steps, agents), dtype=np.bool_)
    truncated[task.horizon - 1 :: task.horizon] = True
    return Episodes(
        obs=rng.standard_normal((rows, agents, task.obs_dim), dtype=np.float32),
        actions=rng.random((steps, agents, task.act_dim), dtype=np.float32) * 2 - 1,
        rewards=rng.standard_normal((steps, agents), dtype=np.float32),
        terminated=np.zeros((steps, agents), dtype=np.bool_),
        truncated=truncated,
        state=rng.standard_normal((rows, task.state_dim), dtype=np.float32) if task.store_state else None,
        lengths=np.full(count, task.horizon, dtype=np.int64),
        policy=np.zeros(count, dtype=np.int32),
        seed=np.arange(count, dtype=np.int64),
    )


def measure_ours(task: Task, episodes: Episodes) -> dict[str, Any]:
    """Write, load mapped, load into memory, rebuild."""
    dataset_id = f"om2p/{task.name}/random-v0"
    policy = BehaviorPolicy("random", "uniform", 0, 0, "", 0.0, 0.0, episodes.num_episodes)

    def write() -> Path:
        return dataset.write(
            dataset_id, episodes, task=task, tier="random", policies=[policy], collection={}, progress=False
        )

    folder, write_time = timed(write)
    loaded, open_time = timed(lambda: dataset.load(dataset_id))
    _, copy_time = timed(lambda: [np.array(array) for array in loaded.episodes.arrays().values()])
    raw = sum(array.nbytes for array in episodes.arrays().values())
    columns_bytes = sum(file.stat().st_size for file in (folder / "flat").iterdir())
    shutil.rmtree(folder / "flat")
    rebuilt, rebuild_time = timed(lambda: dataset.load(dataset_id))
    if rebuilt.episodes.content_hash() != episodes.content_hash():
        raise AssertionError("what was read is not what was written")
    hdf5_bytes = (folder / "data" / "main_data.hdf5").stat().st_size
    shutil.rmtree(folder)
    return {
        "task": task.name,
        "episodes": episodes.num_episodes,
        "transitions": episodes.num_transitions,
        "raw_mb": raw / 1e6,
        "hdf5_mb": hdf5_bytes / 1e6,
        "hdf5_over_raw": hdf5_bytes / raw,
        "columns_mb": columns_bytes / 1e6,
        "columns_over_raw": columns_bytes / raw,
        "write": write_time,
        "load_mapped": open_time,
        "columns_into_memory": copy_time,
        "load_without_columns": rebuild_time,
    }


def measure_stock(task: Task, episodes: Episodes, share: float) -> dict[str, Any]:
    """Stock Minari's `create_dataset_from_buffers` and iteration over what it wrote, scaled to all episodes."""
    count = max(1, round(episodes.num_episodes * share))
    scale = episodes.num_episodes / count
    buffers = [stock_buffer(task, episodes, index) for index in range(count)]

    def create() -> minari.MinariDataset:
        return minari.create_dataset_from_buffers(
            f"om2p/{task.name}/stock-v0",
            buffers,
            observation_space=spaces.Dict({agent: observation_box(task) for agent in task.agents}),
            action_space=spaces.Dict({agent: action_box(task) for agent in task.agents}),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about authors and links that this data set does not have
        created, create_time = timed(create)
    _, iterate_time = timed(lambda: sum(len(episode) for episode in created))
    data = Path(str(created.storage.data_path))
    size = (data / "main_data.hdf5").stat().st_size
    shutil.rmtree(data.parent)
    return {
        "stock_episodes": count,
        "stock_create_scaled": {key: value * scale for key, value in create_time.items()},
        "stock_iterate_scaled": {key: value * scale for key, value in iterate_time.items()},
        "stock_hdf5_mb_scaled": size * scale / 1e6,
    }


def stock_buffer(task: Task, episodes: Episodes, index: int) -> EpisodeBuffer:
    first, row, length = episodes.transition_start[index], episodes.episode_start[index], episodes.lengths[index]
    steps, rows = slice(first, first + length), slice(row, row + length + 1)
    infos = {"agent_rewards": np.concatenate([np.zeros_like(episodes.rewards[:1]), episodes.rewards[steps]])}
    if episodes.state is not None:
        infos["state"] = episodes.state[rows]
    return EpisodeBuffer(
        seed=int(episodes.seed[index]),
        observations={agent: episodes.obs[rows, k] for k, agent in enumerate(task.agents)},
        actions={agent: episodes.actions[steps, k] for k, agent in enumerate(task.agents)},
        rewards=list(episodes.team_rewards[steps]),
        terminations=list(episodes.team_terminated[steps]),
        truncations=list(episodes.team_truncated[steps]),
        infos=infos,
    )


def timed(function: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What the function returns, and how long it took: seconds on the clock and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def table(row: dict[str, Any]) -> str:
    lines = [f"{row['task']}: {row['episodes']} episodes, {row['transitions']} transitions, {row['raw_mb']:.0f} MB raw"]
    lines += [
        f"  {name:<24}{row[name]['seconds']:>10.3f} s {row[name]['cpu_seconds']:>10.3f} s CPU"
        for name in ("write", "load_mapped", "columns_into_memory", "load_without_columns")
    ]
    lines += [
        f"  {name:<24}{row[name]['seconds']:>10.1f} s {row[name]['cpu_seconds']:>10.1f} s CPU  "
        f"(from {row['stock_episodes']} episodes)"
        for name in ("stock_create_scaled", "stock_iterate_scaled")
    ]
    lines += [
        f"  {'hdf5':<24}{row['hdf5_mb']:>10.0f} MB {row['hdf5_over_raw']:>9.2f} x raw",
        f"  {'columns':<24}{row['columns_mb']:>10.0f} MB {row['columns_over_raw']:>9.2f} x raw",
        f"  {'stock hdf5, scaled':<24}{row['stock_hdf5_mb_scaled']:>10.0f} MB "
        f"{row['stock_hdf5_mb_scaled'] / row['raw_mb']:>9.2f} x raw",
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": git_commit(),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
