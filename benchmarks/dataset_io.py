"""Time and disk space of data sets: ours beside stock Minari's writer and reader, on random data in one run.

    python benchmarks/dataset_io.py [--transitions 1000000] [--stock-share 0.1] [--tasks cn hc] [--folder DIR]

Prints a table and writes benchmarks/results/dataset_io.json. Stock Minari works on a share of the episodes, and its
figures are scaled up to all of them. `cpu_seconds` is processor time, which other programs disturb less than `seconds`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import minari
import numpy as np
from common import RESULTS
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from om2p_data import dataset
from om2p_data.dataset import BehaviorPolicy
from om2p_data.envs.adapters import action_space, observation_box
from om2p_data.envs.registry import Task, find
from om2p_data.episodes import Episodes
from om2p_data.measuring import print_table, write_results
from om2p_data.spec import EnvironmentCard

PACKAGES = ("minari", "h5py", "numpy", "gymnasium")
T = TypeVar("T")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000, help="size of each data set")
    parser.add_argument("--stock-share", type=float, default=0.1, help="share of the episodes given to stock Minari")
    parser.add_argument("--tasks", nargs="+", default=["cn", "hc"], help="tasks whose shapes are taken")
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--output", type=Path, default=RESULTS / "dataset_io.json", help="JSON file for the results")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        for name in options.tasks:
            task = find(name)
            episodes = random_episodes(task, options.transitions // task.horizon)
            rows += measure_ours(task, episodes) + measure_stock(task, episodes, options.stock_share)
    print_table(rows)
    settings = {"transitions": options.transitions, "stock_share": options.stock_share}
    write_results(options.output, rows, settings, *PACKAGES)
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


def measure_ours(task: Task, episodes: Episodes) -> list[Row]:
    """Write, load mapped, read into memory, and load without columns, which rebuilds them."""
    dataset_id = f"om2p/{task.name}/random-v0"
    policy = BehaviorPolicy("random", "uniform", 0, 0, "", 0.0, 0.0, episodes.num_episodes)

    def write() -> Path:
        environment = EnvironmentCard.of(task)
        return dataset.write(
            dataset_id, episodes, environment=environment, policies=[policy], collection={}, progress=False
        )

    folder, writing = timed(write)
    loaded, mapping = timed(lambda: dataset.load(dataset_id))
    _, copying = timed(lambda: [np.array(array) for array in loaded.episodes.arrays().values()])
    columns_bytes = sum(file.stat().st_size for file in (folder / "flat").iterdir())
    shutil.rmtree(folder / "flat")
    rebuilt, rebuilding = timed(lambda: dataset.load(dataset_id))
    if rebuilt.episodes.content_hash() != episodes.content_hash():
        raise AssertionError("what was read is not what was written")
    hdf5_bytes = (folder / "data" / "main_data.hdf5").stat().st_size
    shutil.rmtree(folder)
    return [
        row(episodes, task, "write HDF5 and columns", writing, hdf5_bytes),
        row(episodes, task, "load mapped columns", mapping, columns_bytes),
        row(episodes, task, "mapped columns into memory", copying),
        row(episodes, task, "load without columns", rebuilding),
    ]


def measure_stock(task: Task, episodes: Episodes, share: float) -> list[Row]:
    """Stock Minari's `create_dataset_from_buffers` and iteration over what it wrote, scaled to all episodes."""
    count = max(1, round(episodes.num_episodes * share))
    scale = episodes.num_episodes / count
    buffers = [stock_buffer(task, episodes, index) for index in range(count)]

    def create() -> minari.MinariDataset:
        return minari.create_dataset_from_buffers(
            f"om2p/{task.name}/stock-v0",
            buffers,
            observation_space=spaces.Dict({agent: observation_box(task) for agent in task.agents}),
            action_space=spaces.Dict({agent: action_space(task) for agent in task.agents}),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about authors and links that this data set does not have
        created, creating = timed(create)
    _, iterating = timed(lambda: sum(len(episode) for episode in created))
    data = Path(str(created.storage.data_path))
    size = (data / "main_data.hdf5").stat().st_size
    shutil.rmtree(data.parent)
    return [
        row(episodes, task, "stock create_dataset_from_buffers", creating, size, scale),
        row(episodes, task, "stock iteration", iterating, scale=scale),
    ]


def row(
    episodes: Episodes,
    task: Task,
    operation: str,
    times: tuple[float, float],
    size: int | None = None,
    scale: float = 1.0,
) -> Row:
    """One line of the table; `size` in bytes of what the operation wrote or mapped, beside that of the bare arrays."""
    raw = sum(array.nbytes for array in episodes.arrays().values())
    return {
        "task": task.name,
        "episodes": episodes.num_episodes,
        "raw_mb": raw / 1e6,
        "operation": operation,
        "seconds": times[0] * scale,
        "cpu_seconds": times[1] * scale,
        "mb": None if size is None else size * scale / 1e6,
        "size_over_raw": None if size is None else size * scale / raw,
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


def timed(function: Callable[[], T]) -> tuple[T, tuple[float, float]]:
    """What the function returns, and how long it took: seconds on the clock and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


if __name__ == "__main__":
    main()
