"""Folders in pieces, which travel where no storage is shared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from om2p_data.storage import sync
from om2p_train.run_folder import CHECKPOINT_FILE, RUN_FILE

_PIECE = 16 * 2**20  # bytes
# What says how much of the other files counts is read before them and put in place after them, so that a copy of a
# folder that is written to meanwhile is one from which a job goes on.
_LEADING = (RUN_FILE, CHECKPOINT_FILE)


class Piece(NamedTuple):
    """A part of a file.

    Attributes:
        name: path of the file inside its folder.
        offset: where the part begins; one at 0 begins the file anew.
    """

    name: str
    offset: int
    content: bytes


class Listing(NamedTuple):
    """The end of a folder's pieces: all files that it has, in the order in which they were read."""

    names: tuple[str, ...]


class Sender:
    """Reads a folder again and again, and hands out what changed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._sent: dict[str, tuple[int, int, int]] = {}

    def read(self) -> Iterator[Piece | Listing]:
        """Pieces of the files that changed since the last call, and the listing; no listing where the folder changed
        in a way that leaves no whole copy."""
        names = sorted(_files(self._folder), key=_order)
        present, changed = [], False
        for name in names:
            try:
                with (self._folder / name).open("rb") as file:
                    status = os.fstat(file.fileno())
                    mark = (status.st_ino, status.st_size, status.st_mtime_ns)
                    if self._sent.get(name) != mark:
                        changed = True
                        yield Piece(name, 0, file.read(min(_PIECE, status.st_size)))
                        while file.tell() < status.st_size:
                            offset = file.tell()
                            content = file.read(min(_PIECE, status.st_size - offset))
                            if not content:  # it was cut meanwhile
                                return
                            yield Piece(name, offset, content)
                        self._sent[name] = mark
            except FileNotFoundError:
                continue
            present.append(name)
        leading = [name for name in present if _is_leading(name)]
        gone = set(self._sent) - set(present)
        if (changed or gone) and all((self._folder / name).exists() for name in leading):
            self._sent = {name: self._sent[name] for name in present}
            yield Listing(tuple(present))


class Receiver:
    """Gathers a folder's pieces beside it, and brings it up to date when a listing says that they are whole."""

    def __init__(self, folder: Path, staging: Path):
        self.folder, self._staging = folder, staging
        shutil.rmtree(staging, ignore_errors=True)

    def add(self, piece: Piece) -> None:
        """Keep a piece.

        Raises:
            OSError: it cannot be written.
        """
        put(self._staging, piece)

    def finish(self, listing: Listing) -> None:
        """Put all pieces in place; files that the listing does not have are removed.

        Raises:
            OSError: that cannot be done.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in reversed(listing.names):
            if (self._staging / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(self._staging / name, self.folder / name)
        for name in set(_files(self.folder)) - set(listing.names):
            (self.folder / name).unlink()
        self.close()

    def close(self) -> None:
        """Drop the pieces of what did not become whole."""
        shutil.rmtree(self._staging, ignore_errors=True)


def put(folder: Path, piece: Piece) -> None:
    """Write a piece to where it belongs in a folder.

    Raises:
        OSError: that cannot be done.
    """
    path = folder / piece.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if piece.offset else "wb") as file:
        file.write(piece.content)
        sync(file)


def _files(folder: Path) -> list[str]:
    """All files in a folder but half-written ones."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(".partial")
    ]


def _is_leading(name: str) -> bool:
    return Path(name).name in _LEADING


def _order(name: str) -> tuple[int, str]:
    last = Path(name).name
    return (_LEADING.index(last) if last in _LEADING else len(_LEADING), name)
