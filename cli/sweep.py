"""om2p-train sweep: many runs from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import jobs as job_lists
from .common import Quiet, Root


def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file (TOML): tasks, tiers, algorithms, seeds, variants.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs. Default: sweeps/<name of the file>.")] = None,
    root: Root = None,
    workers: job_lists.Workers = None,
    threads: job_lists.Threads = None,
    retries: job_lists.Retries = None,
    engine: job_lists.Engine = "local",
    address: job_lists.Address = None,
    gpus_per_job: job_lists.GpusPerJob = None,
    storage: job_lists.Storage = None,
    fetch_every: job_lists.FetchEvery = None,
    list_: job_lists.List = False,
    sbatch: job_lists.Sbatch = None,
    quiet: Quiet = False,
) -> None:
    """Make the data sets and train all the cells of a sweep, as many at a time as the machine allows.

    What is finished stays; what was interrupted goes on. The same command can be given again at any time.
    """
    from om2p_train import reporting
    from om2p_train import sweep as sweeps

    means = job_lists.Means(workers, threads, retries, engine, address, gpus_per_job, storage, fetch_every)
    recipe = sweeps.read(file)
    means.check(recipe.device, sbatch)
    out = out or Path("sweeps", file.stem)
    jobs = sweeps.jobs(recipe, out, file.parent, root)
    if list_:
        job_lists.show(jobs)
    elif sbatch is not None:
        job_lists.hand_over(jobs, means, sbatch, file.stem)
    else:
        outcome = job_lists.work(jobs, means, recipe.device, out / "logs", file.stem, quiet=quiet)
        print(reporting.text(sweeps.results(jobs)))
        again = ["om2p-train", "sweep", str(file), "--out", str(out), *(["--root", str(root)] if root else [])]
        job_lists.finish(outcome, len(jobs), [*again, *means.words()])
