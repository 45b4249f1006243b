"""A sweep on a Ray cluster of several nodes, all on this machine: how busy its slots are, and what a job costs more.

The sweep is the user's own command with `--engine ray --address`, on nodes with one CPU each. A slot is busy while its
job is at work there, from the message that it begins to the one that it is done. The same sweep by the local engine,
with as many jobs at a time, is what overhead is counted against.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS
from ray.cluster_utils import Cluster

from om2p_data.measuring import print_table, write_results
from om2p_train import sweep

SWEEP = """
tasks = ["cn"]
tiers = ["random"]
algorithms = ["bc"]
seeds = [0]
transitions = 1000
settings = ["run.evaluate_every=1000000", "run.evaluation_episodes=4", "network.hidden=[8]"]
[variants]
"""
PROGRAM = "from om2p_cli.train import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2, help="with one CPU each (default: 2)")
    parser.add_argument("--jobs", type=int, default=6, help="how many runs (default: 6)")
    parser.add_argument("--updates", type=int, default=2000, help="of each run (default: 2000)")
    parser.add_argument("--storage", nargs="+", default=["shared", "fetch"], help="kinds to measure")
    parser.add_argument("--out", type=Path, default=RESULTS / "cluster_ray.json", help="result file")
    arguments = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(arguments.nodes):
        cluster.add_node(num_cpus=1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            os.environ["MINARI_DATASETS_PATH"] = str(Path(folder, "datasets"))
            rows = measure(str(cluster.address), arguments.nodes, arguments.jobs, arguments.updates, arguments.storage)
    finally:
        cluster.shutdown()
    print_table(rows)
    settings = {"nodes": arguments.nodes, "cpus_per_node": 1, "jobs": arguments.jobs, "updates": arguments.updates}
    write_results(arguments.out, rows, settings, "om2p", "ray", "torch", "numpy")


def measure(address: str, nodes: int, jobs: int, updates: int, storages: list[str]) -> list[dict[str, Any]]:
    """One row an engine and kind of storage."""
    variants = [f'v{number} = ["run.updates={updates + number}"]' for number in range(jobs)]
    Path("mine.toml").write_text(SWEEP + "\n".join(variants) + "\n", encoding="utf-8")
    listed = sweep.jobs(sweep.read(Path("mine.toml")), Path("plain"), Path())
    subprocess.run([*program("data"), *listed[0].arguments], check=True, stdout=subprocess.DEVNULL)
    ways = {"local": ["--workers", str(nodes)]}
    ways |= {f"ray, {kind}": ["--engine", "ray", "--address", address, "--storage", kind] for kind in storages}
    rows: list[dict[str, Any]] = []
    for number, (way, words) in enumerate(ways.items()):
        command = [*program("train"), "sweep", "mine.toml", "--out", f"out{number}", "--threads", "1", *words]
        seconds, span = swept(command)
        first = rows[0]["seconds"] if rows else span
        rows.append(
            {
                "engine": way,
                "jobs": len(seconds),
                "seconds": round(span, 1),
                "median_job_seconds": round(statistics.median(seconds), 1),
                "busy_share": round(sum(seconds) / (nodes * span), 3),
                "overhead_per_job_seconds": round((span - first) * nodes / len(seconds), 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def program(kind: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.replace("train", kind)]


def swept(command: list[str]) -> tuple[list[float], float]:
    """Seconds of each job, and from the first job's begin to the last one's end."""
    began: dict[str, float] = {}
    seconds: list[float] = []
    ended = 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        now = time.perf_counter()
        if found := re.search(r"begins(?: on \S+)?: (\S+)", line):
            began[found[1]] = now
        elif found := re.search(r"done: (\S+) \(", line):
            seconds.append(now - began[found[1]])
            ended = now
    if process.wait():
        raise SystemExit(f"the sweep failed with status {process.returncode}")
    return seconds, ended - min(began.values())


if __name__ == "__main__":
    main()
