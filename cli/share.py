"""om2p-data: what combines data sets, and what carries them between machines and formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Quiet, Root

if TYPE_CHECKING:
    from om2p_data.episodes import Episodes

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what bears the same name.")]
Remote = Annotated[str, typer.Option(help="hf://<user>, gs://<bucket> or a folder.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Data set id: om2p/<task>/<tier>-v<N>.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("mix")(mix)
    app.command("pack")(pack)
    app.command("unpack")(unpack)
    app.command("upload")(upload)
    app.command("download")(download)
    app.command("import")(import_)
    app.command("export")(export)


def mix(
    sources: Annotated[list[str], typer.Argument(metavar="ID=SHARE...", help="One share may be left out: the rest.")],
    dataset_id: Annotated[str, typer.Option("--id", help="Id of the new data set: om2p/<task>/<tier>-v<N>.")],
    transitions: Annotated[
        int | None,
        typer.Option(help="How many; the last episodes are completed. Default: as many as the shares allow."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.", min=0)] = 0,
    root: Root = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw whole episodes from data sets by shares of the transitions, as a new data set."""
    from om2p_data import mixing

    made = mixing.mix(
        dataset_id,
        mixing.parse_shares(sources),
        transitions=transitions,
        seed=seed,
        overwrite=overwrite,
        root=root,
        progress=not quiet,
    )
    _summary(dataset_id, made.episodes)
    for part in made.parts:
        print(f"  {part.id}: {part.transitions:,} transitions in {part.episodes:,} episodes, {part.achieved:.2%}")
    if made.repeated:
        print(f"  {made.repeated:,} of these episodes came from more than one source")
    print(f"in {made.folder}")


def pack(
    dataset_id: Id,
    out: Annotated[Path | None, typer.Option(help="File to write. Default: <task>-<tier>-v<N>.tar.gz here.")] = None,
    root: Root = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a data set into one file with checksums, to be sent to somebody."""
    from om2p_data import archive

    path = archive.pack(dataset_id, out, overwrite=overwrite, root=root, progress=not quiet)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def unpack(
    file: Annotated[Path, typer.Argument(help="Archive that om2p-data pack wrote.")],
    root: Root = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Verify an archive and put its data set where it belongs."""
    from om2p_data import archive, dataset

    dataset_id = archive.unpack(file, overwrite=overwrite, root=root, progress=not quiet)
    print(f"{dataset_id} in {dataset.datasets_root(root) / dataset_id}")


def upload(dataset_id: Id, remote: Remote, root: Root = None) -> None:
    """Copy a data set to a remote; what is there already is never overwritten."""
    from om2p_data import sharing

    sharing.upload(dataset_id, remote, root=root)
    print(f"{dataset_id} is at {remote}")


def download(dataset_id: Id, remote: Remote, root: Root = None, overwrite: Overwrite = False) -> None:
    """Copy a data set from a remote and verify its contents."""
    from om2p_data import sharing

    folder = sharing.download(dataset_id, remote, overwrite=overwrite, root=root)
    print(f"{dataset_id} in {folder}")


def import_(
    source: Annotated[str, typer.Argument(metavar="FORMAT", help="npy (OMAR), omiga or vault (OG-MARL).")],
    path: Annotated[Path, typer.Argument(help="File or folder.")],
    dataset_id: Annotated[str, typer.Option("--id", help="Id of the new data set: om2p/<task>/<tier>-v<N>.")],
    env: Annotated[
        str | None, typer.Option(help="Task: cn, pp, world, hc, ... Default: the id's, where it is one of ours.")
    ] = None,
    horizon: Annotated[
        int | None, typer.Option(help="Steps of an episode, where the data do not show its end.", min=1)
    ] = None,
    dones: Annotated[
        str,
        typer.Option(
            help="What a done flag means: termination, limit (of time), or limit-at-horizon: a limit on the horizon's "
            "step, a termination before."
        ),
    ] = "limit-at-horizon",
    root: Root = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write data of another format as a Minari data set."""
    from om2p_data import exchange

    made = exchange.import_data(
        exchange.Format.parse(source),
        path,
        dataset_id,
        env=env,
        horizon=horizon,
        dones=exchange.Dones.parse(dones),
        overwrite=overwrite,
        root=root,
        progress=not quiet,
    )
    _summary(dataset_id, made.episodes)
    for note in made.notes:
        print(f"  {note}")
    print(f"in {made.folder}")


def export(
    dataset_id: Id,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    target: Annotated[str, typer.Option("--format", help="npy.")] = "npy",
    root: Root = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a data set in another format; seeds, policies and metadata are lost."""
    from om2p_data import exchange

    exchange.export_data(
        dataset_id, exchange.Format.parse(target), out, overwrite=overwrite, root=root, progress=not quiet
    )
    print(f"{dataset_id} in {out}")


def _summary(dataset_id: str, episodes: Episodes) -> None:
    returns = episodes.team_returns
    print(f"{dataset_id}: {episodes.num_transitions:,} transitions in {episodes.num_episodes:,} episodes,", end=" ")
    print(f"return {returns.mean():.1f} ± {returns.std():.1f}")
