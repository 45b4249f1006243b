"""om2p-train reproduce: the papers' tables and figures by one command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import jobs as job_lists
from .common import Quiet, Root, parse_names, parse_seeds

if TYPE_CHECKING:
    from om2p_train.experiments import Experiment, Protocol

_DEVICES = ("cpu", "cuda")


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            help="table1, table2, figure2 to figure4, vgm2p, tuning, improvements, teams; without it, what they are."
        ),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="cpu (small networks, few updates, 3 seeds), paper (a million updates, 5 seeds) or strict (10 seeds, "
            "32 evaluation episodes)."
        ),
    ] = "cpu",
    tasks: Annotated[str | None, typer.Option(help="Only these tasks of it: cn,hc.")] = None,
    tiers: Annotated[str | None, typer.Option(help="Only these tiers of it: medium,expert.")] = None,
    recipes: Annotated[str | None, typer.Option(help="Only these recipes of it: bc,om2p.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Other seeds: 0-4 or 0,2,5. Tables join them with those of earlier runs.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cpu for scale cpu, otherwise cuda.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder. Default: reproduce/<name>-<scale>.")] = None,
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
    """Make the data, train all that a paper's table or figure needs, and lay it out beside the paper's numbers.

    What is finished stays; what was interrupted goes on. The same command can be given again at any time, also with
    other tasks, tiers, recipes or seeds: tables and files hold all that has run so far.
    """
    from om2p_data.tiers import Tier
    from om2p_train import experiments
    from om2p_train.reporting import papers

    if name is None:
        for each in experiments.names():
            experiment = experiments.read(each)
            print(f"{each:8} {experiment.title} ({experiment.source})")
        return
    experiment = experiments.read(name)
    amount = _amount(experiments.protocol(scale), device)
    asked = job_lists.Means(workers, threads, retries, engine, address, gpus_per_job, storage, fetch_every)
    asked.check(amount.device, sbatch)
    means = _alone(asked, experiment)
    out = out or Path("reproduce", f"{name}-{scale}")
    given = {"tasks": tasks, "tiers": tiers, "recipes": recipes}
    only = {key: [] if text is None else parse_names(f"--{key}", text) for key, text in given.items()}
    some_tiers = [Tier.parse(tier) for tier in only["tiers"]]
    chosen = parse_seeds(seeds) if seeds is not None else None
    parts = experiments.narrowed(experiment, only["tasks"], some_tiers, only["recipes"], chosen)
    jobs, cells = experiments.jobs(parts, amount, out / "runs", root)
    if list_:
        job_lists.show(jobs)
        return
    if sbatch is not None:
        job_lists.hand_over(jobs, means, sbatch, name)
        return
    outcome = job_lists.work(jobs, means, amount.device, out / "logs", name, quiet=quiet)
    if outcome.stopped_by is None:  # who stops a night's work wants it to stop
        found = experiments.standing(experiment, amount, cells, out / "runs")
        text, paths = papers.write(experiment, scale, found, out)
        print(text + (f"\n\nwrote {', '.join(path.name for path in paths)} in {out}" if paths else ""))
    given |= {"seeds": seeds, "device": device, "root": None if root is None else str(root)}
    again = ["om2p-train", "reproduce", name, "--scale", scale, "--out", str(out)]
    again += [word for option, value in given.items() if value is not None for word in (f"--{option}", value)]
    job_lists.finish(outcome, len(jobs), [*again, *asked.words()])


def _amount(amount: Protocol, device: str | None) -> Protocol:
    from om2p_data.errors import unknown

    if device not in (None, *_DEVICES):
        raise unknown("device", device, _DEVICES)
    return amount if device is None else amount.model_copy(update={"device": device})


def _alone(means: job_lists.Means, experiment: Experiment) -> job_lists.Means:
    """Timed runs have the machine to themselves."""
    from om2p_data.envs.vector import available_cores
    from om2p_data.errors import UserError

    if not experiment.one_at_a_time:
        return means
    if (means.workers or 1) > 1:
        raise UserError("the runs of this experiment are timed, one at a time: leave --workers out")
    return replace(means, workers=1, threads=means.threads or available_cores())
