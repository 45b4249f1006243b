"""Jobs as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from om2p_data.errors import UserError
from om2p_data.storage import reason
from om2p_train import job_process
from om2p_train.engine import Began, Ended, Launcher
from om2p_train.sweep import Job

_LOOK_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Slots:
    """How many jobs run at a time, and what each may use.

    Attributes:
        count: jobs at a time.
        threads: of each.
        gpus: ids of the accelerators, taken in turns; empty on a CPU.
    """

    count: int
    threads: int
    gpus: tuple[str, ...] = ()


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    slot: int


class LocalLauncher(Launcher):
    """Processes on this machine, with the slots' thread counts, cores and GPUs."""

    def __init__(self, slots: Slots):
        self._slots = slots
        self._running: list[_Running] = []
        self._begun: list[Began | Ended] = []

    def has_room(self) -> bool:
        return len(self._running) < self._slots.count

    def start(self, job: Job, log: Path) -> None:
        taken = {entry.slot for entry in self._running}
        slot = next(number for number in range(self._slots.count) if number not in taken)
        gpus = self._slots.gpus
        environment = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        try:
            process = job_process.start(job, self._slots.threads, log, environment, cores=self._cores(slot))
        except OSError as error:
            raise UserError(f"cannot start {job.name}: {reason(error)}") from error
        self._running.append(_Running(job, process, slot))
        self._begun.append(Began(job))

    def look(self) -> list[Began | Ended]:
        begun, self._begun = self._begun, []
        if not begun:
            time.sleep(_LOOK_EVERY)
        over = [entry for entry in self._running if entry.process.poll() is not None]
        self._running = [entry for entry in self._running if entry not in over]
        codes = [(entry.job, entry.process.returncode) for entry in over]
        return begun + [Ended(job, code, job_process.ending(code)) for job, code in codes]

    def stop(self) -> None:
        for entry in self._running:
            entry.process.send_signal(signal.SIGTERM)
        for entry in self._running:
            entry.process.wait()

    def _cores(self, slot: int) -> set[int] | None:
        """The slot's own share, so that simulators take no more threads either; all where there are too few."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        threads = self._slots.threads
        cores = sorted(os.sched_getaffinity(0))
        share = cores[slot * threads : (slot + 1) * threads]
        return set(share) if len(cores) >= self._slots.count * threads else set(cores)
