"""Runs a job list by processes on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from om2p_data.errors import UserError
from om2p_data.storage import locked, reason
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
    said_before: int  # bytes of the log
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
        UserError: another sweep is at work there, the folder cannot be written, no process can be started, or what is
            on the disk contradicts the list.
    """
    outcome = Outcome()
    waiting = [job for job in jobs if job.state() is not State.DONE]
    attempts = dict.fromkeys((job.name for job in waiting), 0)
    running: list[_Running] = []
    with _held(logs), wishes() as wish:
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
    unfinished = {job.name for job in waiting} | {entry.job.name for entry in running}
    ready = [job for job in waiting if unfinished.isdisjoint(job.needs)]
    for job in ready[: slots.count - len(running)]:
        slot = next(number for number in range(slots.count) if number not in {entry.slot for entry in running})
        words = [*job.arguments, *(["--threads", str(slots.threads)] if job.program == "om2p-train" else [])]
        try:
            log = _log_of(logs, job).open("ab")
            said_before = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {_MODULES[job.program]} import main; main()", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(slots, slot),
                start_new_session=True,  # a terminal's Ctrl-C reaches the jobs through this process alone
                preexec_fn=functools.partial(_prepare, _cores_of(slots, slot)) if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise UserError(f"cannot start {job.name}: {reason(error)}") from error
        waiting.remove(job)
        running.append(_Running(job, process, log, said_before, slot, time.monotonic()))
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
    if code == 0 or job.state() is State.DONE:  # a process can be killed after its work is on the disk
        tell(job, "done", seconds)
        return
    attempts[job.name] += 1
    if code != _BAD_INPUT and attempts[job.name] <= retries:
        waiting.insert(0, job)
        tell(job, f"broke down (exit code {code}) and begins again", seconds)
        return
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    outcome.failed[job.name] = _last_line(_log_of(logs, job), entry.said_before) or how
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


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder, which is made if there is none, for one sweep at a time."""
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder, wait=False))
        except BlockingIOError:
            raise UserError(
                f"another sweep is at work in {folder.parent}: wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {reason(error)}") from error
        yield


def _environment(slots: Slots, slot: int) -> dict[str, str]:
    threads = str(slots.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    if slots.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = slots.gpus[slot % len(slots.gpus)]
    return environment


def _cores_of(slots: Slots, slot: int) -> set[int]:
    """The slot's own share of the cores, so that simulators take no more threads either; all where they are too few."""
    cores = sorted(os.sched_getaffinity(0))
    share = cores[slot * slots.threads : (slot + 1) * slots.threads]
    return set(share) if len(cores) >= slots.count * slots.threads else set(cores)


def _prepare(cores: set[int]) -> None:
    """Between fork and exec: the share of the cores, and a wish to stop when this process dies."""
    os.sched_setaffinity(0, cores)
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGTERM)


def _log_of(logs: Path, job: Job) -> Path:
    return logs / f"{job.name}.log"


def _last_line(path: Path, start: int) -> str:
    lines = path.read_bytes()[start:].decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
