"""Runs a job list by processes on this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from om2p_data.errors import UserError
from om2p_data.storage import reason
from om2p_train.interruption import wishes
from om2p_train.sweep import Job, State

_MODULES = {"om2p-data": "om2p_cli.data", "om2p-train": "om2p_cli.train"}
_LOOK_EVERY = 0.1  # seconds
_BAD_INPUT = 2  # exit code that no further attempt changes
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


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
class Outcome:
    """What became of a job list.

    Attributes:
        failed: by job, the last line that it wrote.
        left_out: jobs that needed one that failed.
        stopped_by: signal that ended it early.
    """

    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    stopped_by: int | None = None


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    log: IO
    slot: int
    began: float


def run(
    jobs: Sequence[Job], slots: Slots, logs: Path, retries: int, tell: Callable[[Job, str, float], object]
) -> Outcome:
    """Do all jobs that are not done, as many at a time as there are slots.

    A job whose process is killed or breaks down is started again, and goes on where it was. Ctrl-C and SIGTERM are
    handed to the jobs, which write their checkpoints.

    Args:
        jobs: in an order in which each stands after those that it needs.
        slots: of this machine.
        logs: folder for what the jobs print.
        retries: further attempts at a job that broke down.
        tell: called when a job begins, ends or fails, with what happened and its seconds so far.

    Raises:
        UserError: the folder cannot be written, or what is on the disk contradicts the list.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {logs}: {reason(error)}") from error
    outcome = Outcome()
    waiting = [job for job in jobs if job.state() is not State.DONE]
    attempts = dict.fromkeys((job.name for job in waiting), 0)
    running: list[_Running] = []
    with wishes() as wish:
        try:
            while waiting or running:
                outcome.stopped_by = outcome.stopped_by or wish()
                if outcome.stopped_by is not None:
                    break
                for entry in [entry for entry in running if entry.process.poll() is not None]:
                    running.remove(entry)
                    entry.log.close()
                    _end(entry, attempts, retries, waiting, outcome, logs, tell)
                _leave_out(waiting, outcome)
                _start(waiting, running, slots, logs, tell)
                time.sleep(_LOOK_EVERY)
        finally:
            _stop(running)
    return outcome


def _start(
    waiting: list[Job], running: list[_Running], slots: Slots, logs: Path, tell: Callable[[Job, str, float], object]
) -> None:
    for job in list(waiting):
        if len(running) >= slots.count:
            return
        unfinished = {other.name for other in waiting} | {entry.job.name for entry in running}
        if unfinished.isdisjoint(job.needs):
            slot = next(number for number in range(slots.count) if number not in {entry.slot for entry in running})
            waiting.remove(job)
            log = _log_of(logs, job).open("ab")
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {_MODULES[job.program]} import main; main()", *_with_threads(job, slots)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(slots, slot),
                start_new_session=True,  # a terminal's Ctrl-C reaches the jobs through this process alone
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
            running.append(_Running(job, process, log, slot, time.monotonic()))
            tell(job, "begins", 0.0)


def _end(
    entry: _Running,
    attempts: dict[str, int],
    retries: int,
    waiting: list[Job],
    outcome: Outcome,
    logs: Path,
    tell: Callable[[Job, str, float], object],
) -> None:
    job, code = entry.job, entry.process.returncode
    seconds = time.monotonic() - entry.began
    if code == 0:
        tell(job, "done", seconds)
        return
    attempts[job.name] += 1
    if code != _BAD_INPUT and attempts[job.name] <= retries:
        waiting.insert(0, job)
        tell(job, f"broke down (exit code {code}) and begins again", seconds)
        return
    outcome.failed[job.name] = _last_line(_log_of(logs, job)) or f"exit code {code}"
    tell(job, "failed", seconds)


def _leave_out(waiting: list[Job], outcome: Outcome) -> None:
    lost = {*outcome.failed, *outcome.left_out}
    for job in [job for job in waiting if not lost.isdisjoint(job.needs)]:
        waiting.remove(job)
        outcome.left_out.append(job.name)


def _stop(running: list[_Running]) -> None:
    for entry in running:
        entry.process.send_signal(signal.SIGTERM)
    for entry in running:
        entry.process.wait()
        entry.log.close()


def _with_threads(job: Job, slots: Slots) -> list[str]:
    return [*job.arguments, *(["--threads", str(slots.threads)] if job.program == "om2p-train" else [])]


def _environment(slots: Slots, slot: int) -> dict[str, str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(slots.threads), "PYTHONUNBUFFERED": "1"}
    if slots.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = slots.gpus[slot % len(slots.gpus)]
    return environment


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGTERM)


def _log_of(logs: Path, job: Job) -> Path:
    return logs / f"{job.name}.log"


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
