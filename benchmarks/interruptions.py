"""`om2p-data generate`, killed at many moments: what is left, and whether the same command then ends as if nothing was.

Every kill is a kill -9 at a random moment of one phase. After it, the library of data sets must be usable: under the
final name there is nothing, or a data set without an error; `om2p-data list` and `minari list` work. Then the command
is given again, every other time after `om2p-data repair`, and must end with the data (by content hash) of a run that
nobody killed.
"""

from __future__ import annotations

import argparse
import enum
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS
from minari import cli as minari_cli
from typer.testing import CliRunner

from om2p_data import dataset, repair
from om2p_data.measuring import print_table, write_results
from om2p_data.validation import Severity, validate

TASK, TIER = "cooperative-navigation", "medium"
DATASET = f"om2p/{TASK}/{TIER}-v0"
SETTINGS = {  # a training that takes seconds, and a rollout that takes about as long as the file
    "behavior.num_envs": 32,
    "behavior.hidden": "[32, 32]",
    "behavior.evaluation_episodes": 100,
    "behavior.judging_episodes": 100,
    "behavior.levels.medium": 125.0,
    "behavior.td3.warmup_steps": 1_600,
    "behavior.td3.batch_size": 128,
    "collection.num_envs": 10,
}
TRANSITIONS = 40_000
SECONDS_BETWEEN_CHECKPOINTS = 0.2
_POLL_SECONDS = 0.002


class Phase(enum.Enum):
    """What the command is doing, as one sees it from outside."""

    TRAINING = "training"
    ROLLOUT = "rollout"
    WRITING = "writing"


@dataclass(frozen=True)
class Place:
    """A folder of its own for behaviour runs and data sets, and the command that fills it."""

    folder: Path
    transitions: int = TRANSITIONS

    @property
    def root(self) -> Path:
        return self.folder / "datasets"

    @property
    def home(self) -> Path:
        return self.folder / "behaviour"

    @property
    def final(self) -> Path:
        return self.root / DATASET

    def arguments(self) -> list[str]:
        """What follows `om2p-data`."""
        changes = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
        size = ["--transitions", str(self.transitions)]
        return [
            "generate",
            "--env",
            "cn",
            "--tier",
            TIER,
            "--fresh",
            "--quiet",
            "--root",
            str(self.root),
            *size,
            *changes,
        ]

    def start(self) -> subprocess.Popen[bytes]:
        """The command as a process of its own.

        It saves its training more often than it would, since it trains for seconds only.
        """
        program = (
            "from om2p_data.behavior import training; "
            f"training._SECONDS_BETWEEN_CHECKPOINTS = {SECONDS_BETWEEN_CHECKPOINTS}; "
            "from om2p_cli.data import main; main()"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, *self.arguments()],
            env=os.environ | {"OM2P_HOME": str(self.home)},
            stdout=subprocess.DEVNULL,
        )

    def phase(self) -> Phase | None:
        """The phase that has begun last, None before the first."""
        if self.final.with_name(f".{self.final.name}.partial").exists():
            return Phase.WRITING
        runs = list(self.home.glob(f"behavior/{TASK}/*"))
        if any((run / f"{TIER}.safetensors").exists() for run in runs):
            return Phase.ROLLOUT
        return Phase.TRAINING if runs else None

    def checkpoint(self) -> int | None:
        """When the training that can go on was saved (ns), None where there is none."""
        return next((path.stat().st_mtime_ns for path in self.home.glob("behavior/*/*/checkpoint.safetensors")), None)

    def kill_when(self, reached: Callable[[], bool], delay: float) -> bool:
        """Start the command and kill it `delay` seconds after a moment; False if it was over by then."""
        process = self.start()
        try:
            while process.poll() is None and not reached():
                time.sleep(_POLL_SECONDS)
            time.sleep(delay)
            alive = process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return alive

    def kill_in(self, phase: Phase, delay: float) -> bool:
        """As `kill_when`, after the beginning of a phase."""
        # A command that is given again may find a phase done, and then begins with a later one.
        later = list(Phase)[list(Phase).index(phase) :]
        return self.kill_when(lambda: self.phase() in later, delay)

    def run(self) -> dict[Phase, float]:
        """The command from start to end; seconds of every phase."""
        began: dict[Phase, float] = {}
        process = self.start()
        while process.poll() is None:
            phase = self.phase()
            if phase is not None:
                began.setdefault(phase, time.perf_counter())
            time.sleep(_POLL_SECONDS)
        if process.returncode:
            raise SystemExit(f"the command failed with status {process.returncode}")
        times = [*began.values(), time.perf_counter()]
        return {phase: after - before for phase, before, after in zip(began, times, times[1:], strict=False)}

    def content_hash(self) -> str:
        """Of the data set, computed from its data."""
        return dataset.load(DATASET, self.root).episodes.content_hash()

    def check_library(self) -> str:
        """What is under the final name after a kill: "nothing" or "complete"; anything else raises.

        Raises:
            AssertionError: a data set with errors, or a listing that does not work.
        """
        listed = [summary.id for summary in dataset.list_datasets(self.root)]
        environment = {"MINARI_DATASETS_PATH": str(self.root), "COLUMNS": "200"}
        stock = CliRunner().invoke(minari_cli.app, ["list", "local"], env=environment)
        assert stock.exit_code == 0, stock.output
        assert (DATASET in stock.output) == (DATASET in listed) == self.final.exists()
        if not listed:
            return "nothing"
        errors = [finding for finding in validate(DATASET, self.root, full=True) if finding.severity is Severity.ERROR]
        assert not errors, errors
        return "complete"

    def left(self) -> list[str]:
        """Hidden files and folders among the data sets."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob(".*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="how many, spread over the phases (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS / "interruptions.json", help="result file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reference = Place(Path(folder, "reference"))
        reference.run()  # compiles the worlds
        shutil.rmtree(reference.folder)
        seconds = reference.run()
        rows = measure(Path(folder), reference.content_hash(), seconds, arguments.kills, arguments.seed)
    print_table(rows)
    settings = {
        "kills": arguments.kills,
        "seed": arguments.seed,
        "transitions": TRANSITIONS,
        "recipe": SETTINGS,
        "seconds_between_checkpoints": SECONDS_BETWEEN_CHECKPOINTS,
        "phase_seconds": {phase.value: round(value, 2) for phase, value in seconds.items()},
    }
    write_results(arguments.out, rows, settings, "om2p", "minari", "h5py", "torch", "numpy")
    if not all(row["same_data"] for row in rows):
        raise SystemExit("a resumed run ended with other data")


def measure(
    folder: Path, expected: str, seconds: dict[Phase, float], kills: int, seed: int
) -> Sequence[dict[str, Any]]:
    """One row a kill."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < kills:
        phase = list(Phase)[len(rows) % len(Phase)]
        delay = float(rng.uniform(0.0, seconds[phase]))
        place = Place(folder / f"kill{len(rows)}")
        killed = place.kill_in(phase, delay)
        if killed:
            found = place.check_library()
            left = place.left()
            checkpoint = place.checkpoint() is not None
            with_repair = len(rows) % 2 == 1
            if with_repair:
                repair.repair(root=place.root)
                assert not place.left(), place.left()
            place.run()
            rows.append(
                {
                    "phase": phase.value,
                    "seconds_into_it": round(delay, 3),
                    "under_the_name": found,
                    "left": ", ".join(left),
                    "training_goes_on": checkpoint,
                    "repaired": with_repair,
                    "same_data": place.content_hash() == expected,
                }
            )
            print(f"{len(rows)}/{kills}: {rows[-1]}", flush=True)
        shutil.rmtree(place.folder, ignore_errors=True)
    return rows


if __name__ == "__main__":
    main()
