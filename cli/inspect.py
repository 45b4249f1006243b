"""om2p-data: what looks into data sets: figures on the terminal, plots, moving pictures and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Root

Verify = Annotated[
    bool, typer.Option("--verify", help="Compute the content hash of the data anew (validate looks deeper).")
]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Data set ids.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("show")(show)
    app.command("plot")(plot)
    app.command("render")(render)
    app.command("report")(report)


def show(
    dataset_ids: Ids,
    json_: Annotated[bool, typer.Option("--json", help="All of it for machines.")] = False,
    verify: Verify = False,
    root: Root = None,
) -> None:
    """Show what data sets hold: returns, agents, behaviour policies, coverage, provenance.

    With --verify, exit code 1 says that data have another hash than their metadata state.
    """
    import dataclasses
    import json
    import shutil

    from om2p_data.inspect import statistics, tables

    found = [statistics.study(dataset_id, root) for dataset_id in dataset_ids]
    verified = [statistics.verify(one) if verify else None for one in found]
    if json_:
        cards = [
            dataclasses.asdict(one.description) | {"verified": state}
            for one, state in zip(found, verified, strict=True)
        ]
        print(json.dumps(cards, indent=1))
    else:
        width = min(shutil.get_terminal_size().columns, 120)
        pages = [tables.comparison([one.description for one in found])] if len(found) > 1 else []
        for one, state in zip(found, verified, strict=True):
            pages += tables.card(one.description, state)
        print("\n\n".join(tables.text(page, width) for page in pages))
    if False in verified:
        raise typer.Exit(1)


def plot(
    dataset_ids: Ids,
    out: Annotated[Path, typer.Option(help="Folder to write PNG files to.")],
    dark: Annotated[bool, typer.Option("--dark", help="On a dark background.")] = False,
    root: Root = None,
) -> None:
    """Draw data sets: returns beside the published ones, order of collection, sources, coverage, actions."""
    from om2p_data.inspect import drawing, figures, statistics

    found = [statistics.study(dataset_id, root) for dataset_id in dataset_ids]
    for path in drawing.save_all(figures.plan(found), out, drawing.DARK if dark else drawing.LIGHT):
        print(path)


def render(
    dataset_id: Annotated[str, typer.Argument(metavar="ID", help="Data set id.")],
    episodes: Annotated[
        str, typer.Option(help="Which, separated by commas: numbers from 0 on, best, worst, median.")
    ] = "best,median,worst",
    out: Annotated[Path, typer.Option(help="GIF or MP4 to write.")] = Path("episodes.gif"),
    every: Annotated[
        int | None, typer.Option(help="Draw each so many-th step. Default: at most 250 pictures an episode.", min=1)
    ] = None,
    fps: Annotated[int, typer.Option(help="Pictures a second.", min=1, max=60)] = 10,
    root: Root = None,
) -> None:
    """Draw episodes from the data: the worlds show the recorded states, nothing is played again."""
    from om2p_data import dataset
    from om2p_data.inspect import film
    from om2p_data.inspect.pictures import writer_of

    write = writer_of(out)
    data = dataset.load(dataset_id, root)
    chosen = film.choose(episodes, data)
    frames = film.draw(data, chosen, every)
    write(frames, out, fps)
    returns = ", ".join(f"{choice.name} {data.episodes.team_returns[choice.index]:.1f}" for choice in chosen)
    print(f"wrote {out}: {len(frames)} pictures, returns: {returns}")


def report(
    dataset_ids: Ids,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    verify: Verify = False,
    root: Root = None,
) -> None:
    """Write one HTML page about data sets, figures included; of several, a comparison comes first."""
    from om2p_data.inspect import report as page
    from om2p_data.inspect import statistics

    found = [statistics.study(dataset_id, root) for dataset_id in dataset_ids]
    page.write(found, out, [statistics.verify(one) if verify else None for one in found])
    print(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB")
