"""A job as a process of its own on this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from om2p_train.sweep import Job

_MODULES = {"om2p-data": "om2p_cli.data", "om2p-train": "om2p_cli.train"}
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def start(
    job: Job,
    threads: int,
    log: Path,
    environment: Mapping[str, str],
    *,
    cores: set[int] | None = None,
    orphaned: int = signal.SIGTERM,
) -> subprocess.Popen:
    """Begin a job.

    Args:
        job: what is to be done.
        threads: how many it may use.
        log: file that what it prints is appended to.
        environment: variables beside those of this process.
        cores: that it may use; by default those of this process.
        orphaned: signal that it gets when the thread that called this dies.

    Raises:
        OSError: the log cannot be written, or no process can be started.
    """
    words = [*job.arguments, *(["--threads", str(threads)] if job.program == "om2p-train" else [])]
    pools = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}

    system = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        """Between fork and exec."""
        if cores is not None:
            os.sched_setaffinity(0, cores)
        if system is not None:
            system.prctl(_DIES_WITH_PARENT, orphaned)

    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {_MODULES[job.program]} import main; main()", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **pools, **environment},
            start_new_session=True,  # a terminal's Ctrl-C reaches the jobs through this process alone
            preexec_fn=prepare if sys.platform == "linux" else None,
        )


def ending(code: int) -> str:
    """An exit code in words."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
