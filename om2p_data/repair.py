"""What killed programs leave in a folder of data sets, ours and Minari's own, and how it is mended.

One half-written data set stops `minari list` and `minari delete` for all of them. Whatever may hold data is put aside
in a hidden folder that Minari does not look into, never deleted unless that is asked for.
"""

from __future__ import annotations

import enum
import functools
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from minari.namespace import NAMESPACE_METADATA_FILENAME

from om2p_data import columns, hdf5, metadata, salvage
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError, unknown
from om2p_data.storage import (
    datasets_root,
    make_namespaces,
    parse_id,
    reason,
    replacing,
    restore,
    sync,
    sync_folder,
    write_whole,
)
from om2p_data.validation import LEFTOVERS, stored_ids
from om2p_data.validation import facts as facts_of
from om2p_data.validation.facts import METADATA, Facts
from om2p_data.validation.findings import Report
from om2p_data.validation.raw import UNREADABLE, RawFile

QUARANTINE = ".quarantine"
_PARTIAL, _REPLACED = LEFTOVERS
_COLLECTING = ".collecting"
_QUIET_SECONDS = 10.0  # a set that changed more recently may be at work: Minari locks its file only now and then


class Verb(enum.Enum):
    """What is done, as it is announced and as it is reported."""

    REMOVE = "remove", "removed"
    BRING_BACK = "bring back", "brought back"
    CORRECT = "correct", "corrected"
    REBUILD = "rebuild", "rebuilt"
    PUT_ASIDE = "put aside", "put aside"
    ADD = "add", "added"
    DELETE = "delete", "deleted"
    LEAVE = "leave alone", "left alone"


@dataclass(frozen=True)
class Action:
    """One thing that was done, or would be.

    Attributes:
        verb: what is done.
        place: to what, relative to the folder of data sets.
        why: what was wrong, and what becomes of it.
    """

    verb: Verb
    place: str
    why: str

    def describe(self, dry_run: bool) -> str:
        """The action in one line."""
        infinitive, past = self.verb.value
        return f"{f'would {infinitive}' if dry_run else past} {self.place}: {self.why}"


def repair(
    dataset_id: str | None = None,
    root: str | os.PathLike[str] | None = None,
    *,
    dry_run: bool = False,
    delete: bool = False,
) -> list[Action]:
    """Mend what killed programs left behind.

    Args:
        dataset_id: the data set to look after, every episode of it; by default all, but only as far as killed programs
            spoil them: metadata, counts and the last episode.
        root: folder of all data sets; by default Minari's.
        dry_run: change nothing.
        delete: in the end delete everything that was put aside, now and earlier.

    Returns:
        What was done, in order.

    Raises:
        UserError: no such data set, or the folder cannot be written.
    """
    top = datasets_root(root)
    repairs = _Repairs(top, dry_run)
    try:
        repairs.leftovers(dataset_id)
        ids = stored_ids(top)
        if dataset_id is not None and dataset_id not in ids:
            if not repairs.actions:
                raise unknown(f"data set in {top}:", dataset_id, ids)
            ids = []
        for found in ids if dataset_id is None else [dataset_id] if ids else []:
            repairs.mend(found, thorough=dataset_id is not None)
        if delete:
            repairs.delete_quarantine()
    except OSError as error:
        raise UserError(f"cannot repair {top}: {reason(error)}") from error
    return repairs.actions


class _Repairs:
    """Looks at one thing after the other, and notes and does what is to be done."""

    def __init__(self, root: Path, dry_run: bool):
        self._root, self._dry_run = root, dry_run
        self.actions: list[Action] = []

    def leftovers(self, dataset_id: str | None) -> None:
        """Hidden folders of our own writers: a replaced data set whose successor never came, and half-written ones."""
        for folder, names, files in os.walk(self._root):
            hidden = [Path(folder, name) for name in (*names, *files) if name.startswith(".")]
            names[:] = [name for name in names if not name.startswith(".")]
            for path in sorted(hidden):
                if path.name.endswith(_COLLECTING) and dataset_id is None:
                    why = "an interrupted collection, which goes on when its command is given again"
                    self._act(Verb.LEAVE, str(path.relative_to(self._root)), why)
            # Replaced ones first: what they bring back may lie beside a half-written successor.
            for suffix in (_REPLACED, _PARTIAL):
                for path in sorted(hidden):
                    final = path.with_name(path.name.removeprefix(".").removesuffix(suffix))
                    if path.name.endswith(suffix) and dataset_id in (None, *self._ids_above(final)):
                        self._leftover(path, final)
        for folder in sorted(path for path in self._root.glob("*") if path.is_dir()):
            self._collector(folder)

    def mend(self, dataset_id: str, thorough: bool) -> None:
        """One data set, by what its files say."""
        folder = self._root / dataset_id
        report = Report()
        content = facts_of.read(folder, report)
        if content.get("dataset_id", dataset_id) != dataset_id:
            why = f"dataset_id was {content['dataset_id']!r}"
            content["dataset_id"] = dataset_id
            self._act(Verb.CORRECT, f"{dataset_id}/{METADATA}", why, lambda: self._write_metadata(folder, content))
        facts = facts_of.check(content, dataset_id, report)
        if content.get("data_format", "hdf5") != "hdf5":
            return
        file = folder / "data" / hdf5.FILE_NAME
        try:
            with RawFile(file) as raw:
                numbers = raw.numbers
                counted = len(raw.names) == len(numbers) == content.get("total_episodes")
                # Whoever was killed was writing the last one.
                looked_at = numbers if thorough else numbers[-1:]
                whole = salvage.whole(raw, facts, looked_at)
                healthy = counted and numbers == list(range(len(numbers))) and len(whole) == len(looked_at) > 0
        except BlockingIOError:
            self._act(Verb.LEAVE, dataset_id, "another program is writing it")
            return
        except OSError as error:
            self._unreadable(dataset_id, folder, facts, f"its data cannot be opened ({reason(error)})")
            return
        if healthy and not report.has_problem("metadata"):
            self._small_things(dataset_id, folder, facts, file)
        elif self._is_quiet(dataset_id, folder):
            self._broken(dataset_id, folder, facts, file)

    def delete_quarantine(self) -> None:
        """Everything that was put aside."""
        quarantine = self._root / QUARANTINE
        for path in sorted(quarantine.iterdir()) if quarantine.is_dir() else ():
            place = str(path.relative_to(self._root))
            self._act(Verb.DELETE, place, "put aside by a repair", functools.partial(salvage.remove, path))

    def _act(self, verb: Verb, place: str, why: str, do: Callable[[], object] = int) -> None:
        self.actions.append(Action(verb, place, why))
        if not self._dry_run and verb is not Verb.LEAVE:
            do()

    def _ids_above(self, path: Path) -> list[str]:
        """The ids that a path could belong to: its own, and its folder's."""
        return [found.relative_to(self._root).as_posix() for found in (path, path.parent) if found != self._root]

    def _leftover(self, path: Path, final: Path) -> None:
        place = str(path.relative_to(self._root))
        if path.is_dir() and salvage.is_locked(path):
            self._act(Verb.LEAVE, place, "another program is writing it")
        elif path.name.endswith(_REPLACED) and not final.exists():
            shown = str(final.relative_to(self._root))
            self._act(Verb.BRING_BACK, shown, "its replacement was killed", lambda: restore(final))
        else:
            why = "half-written" if path.name.endswith(_PARTIAL) else "replaced by a newer one"
            self._act(Verb.REMOVE, place, why, lambda: salvage.remove(path))

    def _collector(self, folder: Path) -> None:
        if (folder / METADATA.name).is_file() and (folder / hdf5.FILE_NAME).is_file():
            self._act(
                Verb.LEAVE,
                str(folder.relative_to(self._root)),
                "collected by Minari's DataCollector, which is at work or was killed; it has no id yet",
            )

    def _is_quiet(self, dataset_id: str, folder: Path) -> bool:
        latest = max((path.stat().st_mtime for path in (folder / "data").rglob("*")), default=0.0)
        quiet = time.time() - latest > _QUIET_SECONDS
        if not quiet:
            why = f"incomplete, but it changed within {_QUIET_SECONDS:.0f} seconds and may be at work: try again"
            self._act(Verb.LEAVE, dataset_id, why)
        return quiet

    def _unreadable(self, dataset_id: str, folder: Path, facts: Facts, why: str) -> None:
        if not self._is_quiet(dataset_id, folder):
            return
        episodes = salvage.columns_of(folder, facts)
        if episodes is not None and salvage.header_of(folder, facts) is not None:
            self._rewrite(dataset_id, folder, facts, episodes, why)
        else:
            self._put_aside(dataset_id, folder, f"{why}, and nothing else holds them")

    def _broken(self, dataset_id: str, folder: Path, facts: Facts, file: Path) -> None:
        """The file opens, but the metadata or some episodes are not what they should be."""
        episodes = salvage.columns_of(folder, facts)
        if episodes is not None and salvage.header_of(folder, facts) is not None:
            self._rewrite(dataset_id, folder, facts, episodes, "its file does not hold what its metadata state")
            return
        with RawFile(file) as raw:
            found, whole = len(raw.names), salvage.whole(raw, facts, raw.numbers)
            if not whole:
                self._put_aside(dataset_id, folder, "no episode in it is whole")
                return
            described = salvage.spaces_of(raw, facts, list(whole))
            steps = sum(whole.values())
        content = salvage.plain(facts)
        content |= described | {
            "dataset_id": dataset_id,
            "data_format": "hdf5",
            "jpeg_encoding": facts.pictures,
            "minari_version": importlib.metadata.version("minari"),
            "total_episodes": len(whole),
            "total_steps": steps,
        }
        counts = f"{len(whole):,} episodes, {steps:,} steps"
        if list(whole) == list(range(found)):
            if facts.content and not facts.is_ours:
                content = facts.content | content
            verb = Verb.CORRECT if facts.content else Verb.REBUILD
            why = f"now {counts}" if facts.content else f"made anew from the data: {counts}"
            self._act(verb, f"{dataset_id}/{METADATA}", why, lambda: self._write_metadata(folder, content))
        else:
            why = f"{counts} are whole and go into a new file; the old one is put aside"
            self._act(Verb.REBUILD, dataset_id, why, lambda: self._copy(folder, file, list(whole), content))

    def _small_things(self, dataset_id: str, folder: Path, facts: Facts, file: Path) -> None:
        stated, megabytes = facts.content["dataset_size"], facts_of.size_of(folder)
        if not facts_of.size_fits(stated, megabytes):
            content = facts.content | {"dataset_size": round(megabytes, 1)}
            why = f"dataset_size was {stated:g} MB, the files have {megabytes:.1f}"
            self._act(Verb.CORRECT, f"{dataset_id}/{METADATA}", why, lambda: self._write_metadata(folder, content))
        flat = folder / columns.FOLDER
        if flat.exists() and facts.is_ours and salvage.columns_of(folder, facts, file.stat().st_size) is None:
            why = "they do not hold the data of main_data.hdf5; loading makes new ones"
            self._put_aside(f"{dataset_id}/{columns.FOLDER}", flat, why)
        missing = [
            parent
            for parent in folder.parents
            if self._root in parent.parents and not (parent / NAMESPACE_METADATA_FILENAME).is_file()
        ]
        for parent in missing:
            self._act(
                Verb.ADD,
                str((parent / NAMESPACE_METADATA_FILENAME).relative_to(self._root)),
                "Minari uploads nothing without it",
                lambda: make_namespaces(self._root, parse_id(dataset_id)),
            )

    def _rewrite(self, dataset_id: str, folder: Path, facts: Facts, episodes: Episodes, why: str) -> None:
        """A new HDF5 file from the flat columns, whose hash is the one that the metadata state."""

        def fill(partial: Path) -> None:
            file = partial / "data" / hdf5.FILE_NAME
            header = metadata.header(folder, facts.content)  # it can be read: `header_of` did
            policies = [(policy.name, policy.step) for policy in header.policies]
            hdf5.write_episodes(file, episodes, header.environment.spec, policies, progress=False)
            size = round(file.stat().st_size / 1e6, 1)
            metadata.write(partial, facts.content | {"dataset_size": size})
            columns.save(partial, episodes, columns.Source(header.content_hash, file.stat().st_size))

        self._act(Verb.REBUILD, dataset_id, f"{why}; its flat columns still do", lambda: self._replace(folder, fill))

    def _copy(self, folder: Path, file: Path, whole: Sequence[int], content: dict[str, Any]) -> None:
        def fill(partial: Path) -> None:
            target = partial / "data" / hdf5.FILE_NAME
            with h5py.File(file, "r") as old, h5py.File(target, "w", track_order=True) as new:
                count = steps = 0
                for number in whole:
                    name = f"episode_{count}"
                    try:
                        old.copy(f"episode_{number}", new, name=name)
                        length = len(new[f"{name}/rewards"])  # pyright: ignore[reportArgumentType] (an array)
                    except UNREADABLE:  # damage in a part that nobody declared
                        new.pop(name, None)
                        continue
                    new[name].attrs.update({"id": count, "total_steps": length})
                    count, steps = count + 1, steps + length
            with target.open("rb") as written:
                sync(written)
            counts = {"total_episodes": count, "total_steps": steps}
            metadata.write(partial, content | counts | {"dataset_size": round(target.stat().st_size / 1e6, 1)})

        self._replace(folder, fill)

    def _replace(self, folder: Path, fill: Callable[[Path], None]) -> None:
        """A new folder in the place of the old one, which is put aside once the new one is complete."""
        with replacing(folder) as partial:
            (partial / "data").mkdir()
            fill(partial)
            sync_folder(partial / "data")
            self._move_aside(folder)

    def _write_metadata(self, folder: Path, content: dict[str, Any]) -> None:
        path = folder / METADATA
        if path.exists():
            aside = self._aside(folder)
            aside.mkdir(parents=True)
            shutil.copyfile(path, aside / path.name)
        content = {"dataset_size": round(facts_of.size_of(folder), 1)} | content
        write_whole(path, lambda temporary: temporary.write_text(json.dumps(content), encoding="utf-8"))

    def _put_aside(self, place: str, path: Path, why: str) -> None:
        self._act(Verb.PUT_ASIDE, place, f"{why}; kept in {QUARANTINE}", lambda: self._move_aside(path))

    def _move_aside(self, path: Path) -> None:
        aside = self._aside(path)
        aside.parent.mkdir(parents=True, exist_ok=True)
        path.rename(aside)

    def _aside(self, path: Path) -> Path:
        """A free name in the quarantine: the path's own, flattened, with a number."""
        name = path.relative_to(self._root).as_posix().replace("/", "--")
        count = 0
        while (aside := self._root / QUARANTINE / f"{name}.{count}").exists():
            count += 1
        return aside
