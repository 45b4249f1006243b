"""om2p-data: what combines data sets, and what carries them between machines and formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet, Root

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what bears the same name.")]
Remote = Annotated[str, typer.Option(help="hf://<user>, gs://<bucket> or a folder.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Data set id: om2p/<task>/<tier>-v<N>.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("pack")(pack)
    app.command("unpack")(unpack)
    app.command("upload")(upload)
    app.command("download")(download)


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
