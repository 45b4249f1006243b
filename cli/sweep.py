"""om2p-train sweep: many runs from one file."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Quiet, Root

if TYPE_CHECKING:
    from om2p_train.engine import Launcher
    from om2p_train.local_engine import Slots
    from om2p_train.sweep import Job

ENGINES, STORAGES = ("local", "ray"), ("shared", "fetch")
FETCH_EVERY = 60.0  # seconds


def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file (TOML): tasks, tiers, algorithms, seeds, variants.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs. Default: sweeps/<name of the file>.")] = None,
    root: Root = None,
    workers: Annotated[
        int | None, typer.Option(help="Jobs at a time. Default: as many as cores or GPUs allow.", min=1)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of each job. Default: 1; beside a GPU of this machine, a share.", min=1),
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="Further attempts at a job that breaks down. Default: 2.", min=0)
    ] = None,
    engine: Annotated[str, typer.Option(help="local (processes of this machine) or ray.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Ray: HOST:PORT of a cluster, or auto. Default: Ray is started on this machine."),
    ] = None,
    gpus_per_job: Annotated[
        float | None, typer.Option(help="Ray: GPUs of each run; 0.25 lets four share one. Default: 1 if it uses any.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Ray: shared (runs and data lie at the same paths on all nodes) or fetch (data are sent to the nodes, "
            "runs and made data brought back). Default: shared."
        ),
    ] = None,
    fetch_every: Annotated[
        float | None,
        typer.Option(help="Ray without shared storage: seconds until unfinished runs are brought. Default: 60.", min=1),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the jobs, how far they are and their commands.")] = False,
    sbatch: Annotated[
        Path | None, typer.Option(help="Run nothing here: write array scripts for Slurm into this folder.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Make the data sets and train all the cells of a sweep, as many at a time as the machine allows.

    What is finished stays; what was interrupted goes on. The same command can be given again at any time.
    """
    from tqdm import tqdm

    from om2p_data.errors import UserError
    from om2p_train import engine as engines
    from om2p_train import sweep as sweeps

    only_ray = {
        "address": address,
        "gpus_per_job": gpus_per_job,
        "storage": storage,
        "fetch_every": fetch_every,
    }
    recipe = sweeps.read(file)
    _check_engine(engine, recipe.device, sbatch is not None, only_ray)
    out = out or Path("sweeps", file.stem)
    jobs = sweeps.jobs(recipe, out, file.parent, root)
    states = {job.name: job.state() for job in jobs}
    if list_:
        for job in jobs:
            print(f"{states[job.name].value:8} {job.name}\n         {job.command}")
        return
    left = [job for job in jobs if states[job.name] is not sweeps.State.DONE]
    if sbatch is not None:
        print(f"{len(left)} of {len(jobs)} jobs are to be done; to hand them to Slurm: {_written(left, sbatch, file)}")
        return
    outcome = engines.Outcome()
    with tqdm(total=len(jobs), initial=len(jobs) - len(left), desc=file.stem, unit="job", disable=quiet) as bar:

        def tell(job: sweeps.Job, what: str, seconds: float) -> None:
            if not quiet:
                bar.write(f"{what}: {job.name}" + (f" ({seconds:.0f} s)" if seconds else ""), file=sys.stderr)
            if what == "done":
                bar.update()

        if left:
            with _launcher(engine, recipe.device, workers, threads, **only_ray) as launcher:
                outcome = engines.run(left, launcher, out / "logs", 2 if retries is None else retries, tell)
    for name, line in outcome.failed.items():
        print(f"failed: {name}: {line.removeprefix('error: ')} (in {out / 'logs' / name}.log)", file=sys.stderr)
    if outcome.left_out:
        print(f"left out, since they need what failed: {', '.join(outcome.left_out)}", file=sys.stderr)
    _tables(jobs)
    if outcome.stopped_by is not None:
        options = {"root": root, "workers": workers, "threads": threads, "retries": retries}
        options |= {"engine": None if engine == "local" else engine} | only_ray
        again = ["om2p-train", "sweep", str(file), "--out", str(out)]
        for option, value in options.items():
            again += [_option(option), str(value)] if value is not None else []
        print(f"stopped; to go on: {shlex.join(again)}", file=sys.stderr)
        raise typer.Exit(128 + outcome.stopped_by)
    if outcome.failed:
        raise UserError(f"{len(outcome.failed)} of {len(jobs)} jobs failed; the same command tries them again")


def _written(jobs: list[Job], folder: Path, file: Path) -> Path:
    from om2p_data.errors import UserError
    from om2p_train import slurm

    if not jobs:
        raise UserError(f"all jobs of {file} are done: there is nothing for Slurm to do")
    return slurm.write(jobs, folder, file.stem)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_engine(engine: str, device: str, writes_scripts: bool, only_ray: dict[str, Any]) -> None:
    """Find out whether the options fit together.

    Raises:
        UserError: they do not.
    """
    from om2p_data.errors import UserError, unknown

    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    given = [name for name, value in only_ray.items() if value is not None]
    if engine != "ray" and given:
        raise UserError(f"{_option(given[0])} is an option of --engine ray")
    if engine == "ray" and writes_scripts:
        raise UserError("--sbatch hands the jobs to Slurm, and --engine ray to Ray: take one of them")
    storage, gpus = only_ray["storage"], only_ray["gpus_per_job"]
    if storage not in (None, *STORAGES):
        raise unknown("storage", storage, STORAGES)
    if only_ray["fetch_every"] is not None and storage != "fetch":
        raise UserError("--fetch-every is an option of --storage fetch")
    if gpus is not None and device != "cuda":
        raise UserError(f"--gpus-per-job needs device = 'cuda' in the sweep, which has {device!r}")
    if gpus is not None and not (0 < gpus <= 1 or (gpus.is_integer() and gpus > 1)):
        raise UserError(f"--gpus-per-job takes a fraction up to 1 or a whole number, not {gpus:g}")


@contextlib.contextmanager
def _launcher(
    engine: str,
    device: str,
    workers: int | None,
    threads: int | None,
    *,
    address: str | None,
    gpus_per_job: float | None,
    storage: str | None,
    fetch_every: float | None,
) -> Iterator[Launcher]:
    if engine == "local":
        from om2p_train.local_engine import LocalLauncher

        yield LocalLauncher(_slots(device, workers, threads))
        return
    from om2p_train import ray_engine

    gpus = (gpus_per_job or 1.0) if device == "cuda" else 0.0
    every = (fetch_every or FETCH_EVERY) if storage == "fetch" else None
    with ray_engine.connected(address, ray_engine.Share(workers, threads or 1, gpus, every)) as launcher:
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
        raise UserError("the sweep wants device = 'cuda', and there is no GPU here")
    count = workers or len(gpus)
    return Slots(count, threads or max(1, cores // count), gpus)


def _tables(jobs: list[Job]) -> None:
    """Tables of the cells that are done, and what is missing."""
    from om2p_train import reporting
    from om2p_train.sweep import results

    print(reporting.text(results(jobs)))
