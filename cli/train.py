"""om2p-train: learn teams from data sets, and look at the results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import policies
from .bench import bench
from .common import Quiet, Settings, guarded, parse_seeds
from .coverage import coverage
from .publish import publish
from .reproduce import reproduce
from .sweep import sweep

app = typer.Typer(
    help="Train OM2P and its baselines from Minari data sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def run(
    dataset: Annotated[
        str | None, typer.Option(help="Data set id, e.g. om2p/cooperative-navigation/medium-v0.")
    ] = None,
    algo: Annotated[
        str | None,
        typer.Option(help="Name of a recipe (see `om2p-train recipes`) or a recipe file (TOML). Default: om2p."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, stacked in one run: 0-4 or 0,2,5. Default: 0-2.")] = None,
    scale: Annotated[
        str | None, typer.Option(help="cpu (small networks, few updates) or paper (4x512, a million). Default: cpu.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cpu.")] = None,
    set_: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<task>/<tier>/<recipe>.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of data sets. Default: Minari's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there already.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in the folder; start it if there is none. With --out, the rest is known from it.",
        ),
    ] = False,
    tensorboard: Annotated[
        bool | None,
        typer.Option(
            "--tensorboard/--no-tensorboard",
            help="Write TensorBoard events. Default: as the run began, with them if it is installed.",
        ),
    ] = None,
    wandb: Annotated[
        bool | None,
        typer.Option("--wandb/--no-wandb", help="Log to Weights & Biases. Default: if the run began with it."),
    ] = None,
    wandb_project: Annotated[str, typer.Option(help="Its project there.")] = "om2p",
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all cores.", min=1)] = None,
    quiet: Quiet = False,
) -> None:
    """Train one recipe on one data set, all seeds in one run.

    Ctrl-C writes a checkpoint; --resume goes on from there, and ends as if nothing had happened.
    """
    import torch

    from om2p_data.errors import unknown
    from om2p_train import reporting, results
    from om2p_train.config import Scale
    from om2p_train.interruption import Interrupted
    from om2p_train.loggers import Loggers
    from om2p_train.request import Request
    from om2p_train.trainer import train

    scales = {entry.value: entry for entry in Scale}
    if scale is not None and scale not in scales:
        raise unknown("scale", scale, scales)
    request = Request(
        dataset=dataset,
        root=root,
        algorithm=algo,
        settings=tuple(set_ or ()),
        scale=scales[scale] if scale is not None else None,
        seeds=parse_seeds(seeds) if seeds is not None else None,
        device=device,
        threads=threads,
        out=out,
        resume=resume,
    )
    plan = request.plan()
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    try:
        worked = train(
            plan.dataset,
            plan.recipe,
            plan.seeds,
            plan.folder,
            device=plan.device,
            overwrite=overwrite,
            resume=resume,
            loggers=Loggers(tensorboard, wandb, wandb_project),
            progress=not quiet,
        )
    except Interrupted as stop:
        again = "the same command again" if stop.update is None else request.resume_command(plan.folder)
        print(f"{stop}; to go on: {again}", file=sys.stderr)
        raise typer.Exit(128 + stop.number) from None
    if not worked:
        print(f"the run in {plan.folder} is finished already\n")
    print(reporting.text(results.gather([plan.folder])))
    print(f"\nin {plan.folder}")


@app.command("report")
def report_(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, folders with some below, such as a sweep's, or files of records (runs.jsonl)."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html, table.md, table.tex, results.csv, runs.jsonl, and the figures as PNG and PDF."
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Results",
) -> None:
    """Compare runs: returns and intervals, comparison over data sets, figures, and one page with all of it.

    Runs below a folder that have not finished, and methods that a data set lacks, are named as missing.
    """
    from om2p_train import reporting, results

    found = results.gather(runs)
    print(reporting.text(found))
    if out is not None:
        paths = reporting.write(found, out, title)
        print(f"\nwrote {', '.join(path.name for path in paths)} in {out}")


@app.command()
def recipes() -> None:
    """List the bundled recipes."""
    from om2p_data.recipe import bundled

    for name in bundled("train"):
        print(name)


for _command in (sweep, reproduce, publish, policies.evaluate, policies.render, policies.export, coverage, bench):
    app.command()(_command)


def main() -> None:
    """Entry point."""
    guarded(app)
