"""om2p-train sweep: many runs from one file."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Quiet, Root

if TYPE_CHECKING:
    from om2p_train.local_engine import Slots
    from om2p_train.sweep import Job


def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file (TOML): tasks, tiers, algorithms, seeds, variants.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs. Default: sweeps/<name of the file>.")] = None,
    root: Root = None,
    workers: Annotated[
        int | None, typer.Option(help="Jobs at a time. Default: as many as cores or GPUs allow.", min=1)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of each job. Default: 1; beside a GPU, a share of the cores.", min=1),
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="Further attempts at a job that breaks down. Default: 2.", min=0)
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
    from om2p_train import local_engine
    from om2p_train import sweep as sweeps

    recipe = sweeps.read(file)
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
    slots = _slots(recipe.device if left else "cpu", workers, threads)
    with tqdm(total=len(jobs), initial=len(jobs) - len(left), desc=file.stem, unit="job", disable=quiet) as bar:

        def tell(job: sweeps.Job, what: str, seconds: float) -> None:
            if not quiet:
                bar.write(f"{what}: {job.name}" + (f" ({seconds:.0f} s)" if seconds else ""), file=sys.stderr)
            if what == "done":
                bar.update()

        outcome = local_engine.run(left, slots, out / "logs", 2 if retries is None else retries, tell)
    for name, line in outcome.failed.items():
        print(f"failed: {name}: {line.removeprefix('error: ')} (in {out / 'logs' / name}.log)", file=sys.stderr)
    if outcome.left_out:
        print(f"left out, since they need what failed: {', '.join(outcome.left_out)}", file=sys.stderr)
    _tables(jobs)
    if outcome.stopped_by is not None:
        again = ["om2p-train", "sweep", str(file), "--out", str(out)]
        for option, value in (("root", root), ("workers", workers), ("threads", threads), ("retries", retries)):
            again += [f"--{option}", str(value)] if value is not None else []
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


def _slots(device: str, workers: int | None, threads: int | None) -> Slots:
    """What this machine has for jobs."""
    import torch

    from om2p_data.envs.vector import available_threads
    from om2p_data.errors import UserError
    from om2p_train.local_engine import Slots

    cores = available_threads()
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
