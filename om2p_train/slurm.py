"""A job list as array jobs of Slurm."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from om2p_data.errors import UserError
from om2p_data.storage import reason
from om2p_train.sweep import DataJob, Job

_ARRAY = """#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --array=1-{count}{at_once}
#SBATCH --output={folder}/{kind}-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
# Each task is one line of {kind}.txt. A task that is stopped writes a checkpoint and goes on when it is given again.
cd {place}
export PATH={programs}:"$PATH"
eval "exec $(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {folder}/{kind}.txt)"
"""

_SUBMIT = """#!/usr/bin/env bash
# Hands the jobs to Slurm; its arguments (--partition=..., --gres=gpu:1, ...) go to all of them.
set -euo pipefail
after=()
{lines}
"""

_SUBMIT_DATA = """data=$(sbatch --parsable "$@" {folder}/data.sbatch)
after=(--dependency="afterok:${{data%%;*}}" --kill-on-invalid-dep=yes)"""

_SUBMIT_TRAIN = """sbatch "${{after[@]}}" "$@" {folder}/train.sbatch"""


def write(
    jobs: Sequence[Job], folder: Path, name: str, threads: int | None = None, at_a_time: int | None = None
) -> Path:
    """Write the scripts for jobs that are to be done.

    Args:
        jobs: data sets and cells, none of them done.
        folder: where the scripts go: `data.sbatch` and `train.sbatch` with their lists of commands, and `submit.sh`,
            which hands over the data sets first and the cells after them.
        name: of the sweep.
        threads: CPU threads of each run; None leaves it to the run.
        at_a_time: tasks of an array at a time; None leaves it to Slurm.

    Returns:
        Path of `submit.sh`.

    Raises:
        UserError: the folder cannot be written.
    """
    kinds = {
        "data": [job for job in jobs if isinstance(job, DataJob)],
        "train": [job for job in jobs if not isinstance(job, DataJob)],
    }
    lines = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, submit in (("data", _SUBMIT_DATA), ("train", _SUBMIT_TRAIN)):
            if not kinds[kind]:
                continue
            place = {"folder": shlex.quote(str(folder.resolve())), "kind": kind}
            facts = {"name": shlex.quote(f"{name}-{kind}"), "count": len(kinds[kind])}
            facts |= {"at_once": f"%{at_a_time}" if at_a_time is not None else ""}
            facts |= {"place": shlex.quote(str(Path.cwd())), "programs": shlex.quote(str(Path(sys.executable).parent))}
            (folder / f"{kind}.txt").write_text(
                "".join(f"{_line(job, threads)}\n" for job in kinds[kind]), encoding="utf-8"
            )
            (folder / f"{kind}.sbatch").write_text(_ARRAY.format(**place, **facts), encoding="utf-8")
            lines.append(submit.format(**place))
        submit_all = folder / "submit.sh"
        submit_all.write_text(_SUBMIT.format(lines="\n".join(lines)), encoding="utf-8")
        submit_all.chmod(0o755)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {reason(error)}") from error
    return submit_all


def _line(job: Job, threads: int | None) -> str:
    return job.command + (f" --threads {threads}" if threads is not None and not isinstance(job, DataJob) else "")
