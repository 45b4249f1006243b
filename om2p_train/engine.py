"""Works through a job list: what may begin, what is tried again, what is left out; where jobs run is a launcher's."""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from om2p_data.errors import UserError
from om2p_data.storage import locked, reason
from om2p_train.interruption import wishes
from om2p_train.sweep import Job, State

_BAD_INPUT = 2  # exit code that no further attempt changes

Tell = Callable[[Job, str, float], object]


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


@dataclass(frozen=True)
class Began:
    """A job that was started is at work."""

    job: Job
    where: str = ""


@dataclass(frozen=True)
class Ended:
    """A job is over.

    Attributes:
        code: of its exit; None where it was lost without one.
        how: the same in words.
    """

    job: Job
    code: int | None
    how: str


class Launcher(abc.ABC):
    """Lets jobs run somewhere."""

    @abc.abstractmethod
    def has_room(self) -> bool:
        """Whether one more job can be taken."""

    @abc.abstractmethod
    def start(self, job: Job, log: Path) -> None:
        """Take a job; what it prints is appended to its log.

        Raises:
            UserError: it cannot be started.
        """

    @abc.abstractmethod
    def look(self) -> list[Began | Ended]:
        """What happened since the last look, after a moment's wait.

        Raises:
            UserError: something that no further attempt changes.
        """

    @abc.abstractmethod
    def stop(self) -> None:
        """Let all jobs write their checkpoints, and return when they are gone."""


@dataclass
class _Attempt:
    job: Job
    said_before: int  # bytes of the log
    began: float | None = None

    def seconds(self) -> float:
        return 0.0 if self.began is None else time.monotonic() - self.began


def run(jobs: Sequence[Job], launcher: Launcher, logs: Path, retries: int, tell: Tell) -> Outcome:
    """Do all jobs that are not done, as many at a time as the launcher takes.

    A job that is killed or breaks down is started again, and goes on where it was. Ctrl-C and SIGTERM are handed to
    the jobs, which write their checkpoints.

    Args:
        jobs: in an order in which each stands after those that it needs.
        launcher: lets them run.
        logs: folder for what the jobs print.
        retries: further attempts at a job that broke down.
        tell: called when a job begins, ends or fails, with what happened and its seconds so far.

    Raises:
        UserError: another sweep is at work there, the folder cannot be written, no job can be started, or what is on
            the disk contradicts the list.
    """
    outcome = Outcome()
    waiting = [job for job in jobs if job.state() is not State.DONE]
    left = dict.fromkeys((job.name for job in waiting), retries)
    running: dict[str, _Attempt] = {}
    with _held(logs), wishes() as wish:
        try:
            while waiting or running:
                outcome.stopped_by = outcome.stopped_by or wish()
                if outcome.stopped_by is not None:
                    break
                _leave_out(waiting, outcome)
                _start(waiting, running, launcher, logs)
                for event in launcher.look():
                    attempt = running[event.job.name]
                    if isinstance(event, Began):
                        attempt.began = time.monotonic()
                        tell(event.job, f"begins{event.where and ' on '}{event.where}", 0.0)
                        continue
                    del running[event.job.name]
                    _end(event, attempt, left, waiting, outcome, logs, tell)
        finally:
            launcher.stop()
    return outcome


def _start(waiting: list[Job], running: dict[str, _Attempt], launcher: Launcher, logs: Path) -> None:
    unfinished = {job.name for job in waiting} | set(running)
    for job in [job for job in waiting if unfinished.isdisjoint(job.needs)]:
        if not launcher.has_room():
            return
        log = _log_of(logs, job)
        try:
            said_before = log.stat().st_size if log.exists() else 0
        except OSError as error:
            raise UserError(f"cannot read {log}: {reason(error)}") from error
        launcher.start(job, log)
        waiting.remove(job)
        running[job.name] = _Attempt(job, said_before)


def _end(
    event: Ended,
    attempt: _Attempt,
    left: dict[str, int],
    waiting: list[Job],
    outcome: Outcome,
    logs: Path,
    tell: Tell,
) -> None:
    job, seconds = event.job, attempt.seconds()
    if event.code == 0 or job.state() is State.DONE:  # a process can be killed after its work is on the disk
        tell(job, "done", seconds)
    elif event.code != _BAD_INPUT and left[job.name] > 0:
        left[job.name] -= 1
        waiting.insert(0, job)
        tell(job, f"broke down ({event.how}) and begins again", seconds)
    else:
        said = _last_line(_log_of(logs, job), attempt.said_before) if event.code is not None else ""
        outcome.failed[job.name] = said or event.how
        tell(job, "failed", seconds)


def _leave_out(waiting: list[Job], outcome: Outcome) -> None:
    lost = {*outcome.failed, *outcome.left_out}
    for job in [job for job in waiting if not lost.isdisjoint(job.needs)]:
        waiting.remove(job)
        outcome.left_out.append(job.name)


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


def _log_of(logs: Path, job: Job) -> Path:
    return logs / f"{job.name}.log"


def _last_line(path: Path, start: int) -> str:
    try:
        lines = path.read_bytes()[start:].decode("utf-8", errors="replace").split("\n")
    except OSError:  # a job that was lost before it said anything
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
