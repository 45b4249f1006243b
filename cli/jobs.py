"""What the commands share that work through job lists: their options, the engines, progress and how they end."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from om2p_train.engine import Launcher, Outcome
    from om2p_train.local_engine import Slots
    from om2p_train.sweep import Job

Workers = Annotated[int | None, typer.Option(help="Jobs at a time. Default: as many as cores or GPUs allow.", min=1)]
Threads = Annotated[
    int | None,
    typer.Option(help="CPU threads of each job. Default: 1; beside a GPU of this machine, a share.", min=1),
]
Retries = Annotated[int | None, typer.Option(help="Further attempts at a job that breaks down. Default: 2.", min=0)]
Engine = Annotated[str, typer.Option(help="local (processes of this machine) or ray.")]
Address = Annotated[
    str | None, typer.Option(help="Ray: HOST:PORT of a cluster, or auto. Default: Ray is started on this machine.")
]
GpusPerJob = Annotated[
    float | None, typer.Option(help="Ray: GPUs of each run; 0.25 lets four share one. Default: 1 if it uses any.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Ray: shared (runs and data lie at the same paths on all nodes) or fetch (data are sent to the nodes, "
        "runs and made data brought back). Default: shared."
    ),
]
FetchEvery = Annotated[
    float | None,
    typer.Option(help="Ray without shared storage: seconds until unfinished runs are brought. Default: 60.", min=1),
]
List = Annotated[bool, typer.Option("--list", help="Show the jobs, how far they are and their commands.")]
Sbatch = Annotated[Path | None, typer.Option(help="Run nothing here: write array scripts for Slurm into this folder.")]

_ENGINES, _STORAGES = ("local", "ray"), ("shared", "fetch")
_FETCH_EVERY = 60.0  # seconds
_RETRIES = 2


@dataclass(frozen=True)
class Means:
    """Where jobs run and how many at a time, as it was asked for; None where nothing was said.

    Attributes: the options of these names.
    """

    workers: int | None = None
    threads: int | None = None
    retries: int | None = None
    engine: str = "local"
    address: str | None = None
    gpus_per_job: float | None = None
    storage: str | None = None
    fetch_every: float | None = None

    def check(self, device: str, sbatch: Path | None) -> None:
        """Find out whether the options fit together, and to the jobs' device.

        Raises:
            UserError: they do not.
        """
        from om2p_data.errors import UserError, unknown

        if self.engine not in _ENGINES:
            raise unknown("engine", self.engine, _ENGINES)
        only_ray = ("address", "gpus_per_job", "storage", "fetch_every")
        given = [name for name in only_ray if getattr(self, name) is not None]
        if self.engine != "ray" and given:
            raise UserError(f"{_option(given[0])} is an option of --engine ray")
        if self.engine == "ray" and sbatch is not None:
            raise UserError("--sbatch hands the jobs to Slurm, and --engine ray to Ray: take one of them")
        if self.storage not in (None, *_STORAGES):
            raise unknown("storage", self.storage, _STORAGES)
        if self.fetch_every is not None and self.storage != "fetch":
            raise UserError("--fetch-every is an option of --storage fetch")
        gpus = self.gpus_per_job
        if gpus is not None and device != "cuda":
            raise UserError(f"--gpus-per-job needs jobs with device = 'cuda', and these have {device!r}")
        if gpus is not None and not (0 < gpus <= 1 or (gpus.is_integer() and gpus > 1)):
            raise UserError(f"--gpus-per-job takes a fraction up to 1 or a whole number, not {gpus:g}")

    def words(self) -> list[str]:
        """These options as one would type them."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        said["engine"] = None if self.engine == _ENGINES[0] else self.engine
        given = {name: value for name, value in said.items() if value is not None}
        return [word for name, value in given.items() for word in (_option(name), str(value))]


def show(jobs: Sequence[Job]) -> None:
    """Print the jobs, how far they are and their commands."""
    for job in jobs:
        print(f"{job.state().value:8} {job.name}\n         {job.command}")


def hand_over(jobs: Sequence[Job], means: Means, folder: Path, name: str) -> None:
    """Write scripts for Slurm for what is left to do.

    Raises:
        UserError: nothing is left, or the folder cannot be written.
    """
    from om2p_data.errors import UserError
    from om2p_train import slurm
    from om2p_train.sweep import State

    left = [job for job in jobs if job.state() is not State.DONE]
    if not left:
        raise UserError(f"all jobs of {name} are done: there is nothing for Slurm to do")
    script = slurm.write(left, folder, name, means.threads, means.workers)
    print(f"{len(left)} of {len(jobs)} jobs are to be done; to hand them to Slurm: {script}")


def work(jobs: Sequence[Job], means: Means, device: str, logs: Path, name: str, *, quiet: bool) -> Outcome:
    """Do what is left of a job list, with a bar, and say what failed."""
    from tqdm import tqdm

    from om2p_train import engine as engines
    from om2p_train.sweep import State

    left = [job for job in jobs if job.state() is not State.DONE]
    outcome = engines.Outcome()
    with tqdm(total=len(jobs), initial=len(jobs) - len(left), desc=name, unit="job", disable=quiet) as bar:

        def tell(job: Job, what: str, seconds: float) -> None:
            if not quiet:
                bar.write(f"{what}: {job.name}" + (f" ({seconds:.0f} s)" if seconds else ""), file=sys.stderr)
            if what == "done":
                bar.update()

        if left:
            with _launcher(means, device) as launcher:
                retries = _RETRIES if means.retries is None else means.retries
                outcome = engines.run(left, launcher, logs, retries, tell)
    for failed, line in outcome.failed.items():
        print(f"failed: {failed}: {line.removeprefix('error: ')} (in {logs / failed}.log)", file=sys.stderr)
    if outcome.left_out:
        print(f"left out, since they need what failed: {', '.join(outcome.left_out)}", file=sys.stderr)
    return outcome


def finish(outcome: Outcome, total: int, again: Sequence[str]) -> None:
    """End the command: as it was stopped, or with what failed.

    Raises:
        Exit: it was stopped; the command that goes on is printed.
        UserError: jobs failed.
    """
    from om2p_data.errors import UserError

    if outcome.stopped_by is not None:
        print(f"stopped; to go on: {shlex.join(again)}", file=sys.stderr)
        raise typer.Exit(128 + outcome.stopped_by)
    if outcome.failed:
        raise UserError(f"{len(outcome.failed)} of {total} jobs failed; the same command tries them again")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@contextlib.contextmanager
def _launcher(means: Means, device: str) -> Iterator[Launcher]:
    if means.engine == "local":
        from om2p_train.local_engine import LocalLauncher

        yield LocalLauncher(_slots(device, means.workers, means.threads))
        return
    from om2p_train import ray_engine

    gpus = (means.gpus_per_job or 1.0) if device == "cuda" else 0.0
    every = (means.fetch_every or _FETCH_EVERY) if means.storage == "fetch" else None
    share = ray_engine.Share(means.workers, means.threads or 1, gpus, every)
    with ray_engine.connected(means.address, share) as launcher:
        yield launcher


def _slots(device: str, workers: int | None, threads: int | None) -> Slots:
    """What this machine has for jobs."""
    import torch

    from om2p_data.envs.vector import available_cores
    from om2p_data.errors import UserError
    from om2p_train.local_engine import Slots

    cores = available_cores()
    if device == "cpu":
        return Slots(workers or max(1, cores // (threads or 1)), threads or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = tuple(visible.split(",") if visible else map(str, range(torch.cuda.device_count())))
    if torch.cuda.device_count() == 0:
        raise UserError("the jobs want device = 'cuda', and there is no GPU here")
    count = workers or len(gpus)
    return Slots(count, threads or max(1, cores // count), gpus)
