"""The files of one run.

run.json                  what was run: recipe, data set and its hash, seeds, device, versions; and whether it finished
recipe.toml               the resolved recipe with its name and scale, which runs the same again
metrics.csv               losses by update, seed and agent
evaluations.csv           the return of every evaluation episode, by update and seed
policies/seed<K>.safetensors   each seed's team, for `load_policy`
checkpoint.safetensors    all that the next update depends on, and how long the tables were at that moment
tensorboard/, wandb/      for those who look on
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError

from om2p_data import checkpoints
from om2p_data.errors import UserError
from om2p_data.storage import locked, reason, sync, write_whole
from om2p_train.config import Scale
from om2p_train.loggers import EVENTS, WANDB_FILES

RUN_FILE, EVALUATIONS_FILE, METRICS_FILE, RECIPE_FILE = "run.json", "evaluations.csv", "metrics.csv", "recipe.toml"
CHECKPOINT_FILE, POLICIES = "checkpoint.safetensors", "policies"
# run.json goes first where a run is removed: a folder that has it has the rest.
_FILES = (RUN_FILE, EVALUATIONS_FILE, METRICS_FILE, RECIPE_FILE, CHECKPOINT_FILE)
_PARTIAL = tuple(f".{name}.partial" for name in _FILES)  # what a killed run leaves
_NAMES = (*_FILES, *_PARTIAL, POLICIES, EVENTS, WANDB_FILES)
# What makes a run this one, in the order in which differences are worth knowing.
_IDENTITY = ("dataset", "dataset_hash", "algorithm", "recipe_name", "scale", "recipe", "seeds", "device")


class _Facts(BaseModel):
    """What run.json must say for a run to go on; it says more."""

    dataset: str
    dataset_hash: str
    algorithm: str
    recipe_name: str
    scale: Scale
    recipe: dict[str, Any]
    seeds: list[NonNegativeInt] = Field(min_length=1)
    device: str
    task: str
    threads: PositiveInt
    tensorboard: bool
    wandb: dict[str, str] | None
    resumed: list[dict[str, Any]]
    finished: bool


class Table:
    """A CSV file that grows, and that can be cut back to what it was at a checkpoint.

    Args:
        path: of the file.
        size: bytes of it that are to be kept.

    Raises:
        UserError: the file has fewer.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, size: int):
        self._path = path
        self._file = path.open("a", newline="", encoding="utf-8")
        if self._file.tell() < size:
            self._file.close()
            raise UserError(f"{path} is shorter than it was at the run's checkpoint: --overwrite starts anew")
        self._file.truncate(size)
        self._file.seek(size)
        self._rows = csv.writer(self._file)

    def write(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Append rows, below a header where they are the first."""
        if self._file.tell() == 0:
            self._rows.writerow(header)
        self._rows.writerows(rows)
        self._file.flush()

    def size(self) -> int:
        """Bytes that are on the disk by now."""
        sync(self._file)
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def holds_run(folder: Path) -> bool:
    """Whether a run can go on in a folder, which is free otherwise.

    Raises:
        UserError: it holds something else, or a run without its run.json.
    """
    present = _present(folder)
    if RUN_FILE in present:
        return True
    if set(present) - set(_PARTIAL):
        raise UserError(f"{folder} has no {RUN_FILE}: no run can go on there; choose another --out, or add --overwrite")
    return False


def read_facts(folder: Path) -> dict[str, Any]:
    """What run.json says.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / RUN_FILE
    try:
        text = path.read_bytes()
        _Facts.model_validate_json(text)
        return json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run folder: it has no {RUN_FILE}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is damaged: {key and key + ': '}{first['msg']}; --overwrite starts anew") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error


def check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Find out whether two runs' facts are of the same run.

    Args:
        folder: where `found` stands, for the message.
        found: the facts of the run that is there.
        wanted: the facts of the run that was asked for.

    Raises:
        UserError: they differ; the first difference is named.
    """
    if found["dataset"] == wanted["dataset"] and found["dataset_hash"] != wanted["dataset_hash"]:
        raise UserError(
            f"{wanted['dataset']} is another data set than when the run in {folder} began (content hash "
            f"{found['dataset_hash']}, now {wanted['dataset_hash']}): --overwrite starts anew"
        )
    there, here = (dict(_flat(facts)) for facts in (found, wanted))
    for key in [*there, *(key for key in here if key not in there)]:
        if key not in there or key not in here or there[key] != here[key]:
            verb = "are" if key == "seeds" else "is"
            raise UserError(
                f"{key} {verb} {_text(there.get(key))} in {folder} and {_text(here.get(key))} here: "
                "choose another --out, or add --overwrite"
            )


def to_toml(tables: Mapping[str, Any]) -> str:
    """Tables of scalars and lists as TOML text (for these, TOML's values are JSON's)."""
    scalars = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    nested = [
        "\n".join([f"\n[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])
        for name, table in tables.items()
        if isinstance(table, dict)
    ]
    return "\n".join([*scalars, *nested]) + "\n"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made if there is none, against other processes.

    Raises:
        UserError: another process trains there, or the folder cannot be made.
    """
    with contextlib.ExitStack() as held:
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder, wait=False))
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}: wait for it, or choose another --out") from None
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {reason(error)}") from error
        try:
            yield
        finally:
            if made:
                with contextlib.suppress(OSError):  # there is something in it now
                    folder.rmdir()


def check_room(folder: Path, *, overwrite: bool) -> None:
    """Find out whether a run can begin in a folder.

    Raises:
        UserError: a run is there and is to stay, or something else is there.
    """
    if set(_present(folder)) - set(_PARTIAL) and not overwrite:
        raise UserError(
            f"{folder} holds a run already: choose another --out, or add --overwrite, or --resume to go on with it"
        )


def make_room(folder: Path, *, overwrite: bool) -> None:
    """Remove an earlier run, whole or broken off, if that is wanted; a folder with anything else is left alone.

    Raises:
        UserError: as `check_room`.
        OSError: it cannot be removed.
    """
    check_room(folder, overwrite=overwrite)
    present = _present(folder)
    for name in _NAMES:
        path = present.get(name)
        if path is None:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write run.json.

    Raises:
        OSError: it cannot be written.
    """
    _write_text(folder / RUN_FILE, json.dumps(facts, indent=2) + "\n")


def write_recipe(folder: Path, tables: Mapping[str, Any]) -> None:
    """Write recipe.toml.

    Raises:
        OSError: it cannot be written.
    """
    _write_text(folder / RECIPE_FILE, to_toml(tables))


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the checkpoint; killed at any moment, the one of before or this one is there.

    Raises:
        OSError: it cannot be written.
    """
    checkpoints.save(folder / CHECKPOINT_FILE, state)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The run's last checkpoint, or None if it has none yet.

    Raises:
        UserError: it is damaged.
    """
    path = folder / CHECKPOINT_FILE
    return checkpoints.load(path) if path.exists() else None


def _present(folder: Path) -> dict[str, Path]:
    """What lies in a folder of a run, by name.

    Raises:
        UserError: something that is no run's.
    """
    if not folder.exists():
        return {}
    try:
        present = {path.name: path for path in folder.iterdir()}
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {reason(error)}") from error
    foreign = sorted(set(present) - set(_NAMES))
    if foreign:
        raise UserError(f"{folder} is not empty and not only a run (it holds {foreign[0]}): choose another --out")
    return present


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Key and value of all that makes a run this one; keys of the recipe read as `--set` takes them."""
    for name in _IDENTITY:
        if name != "recipe":
            yield name, facts[name]
            continue
        for key, value in facts["recipe"].items():
            if isinstance(value, dict):
                yield from ((f"{key}.{inner}", item) for inner, item in value.items())


def _text(value: object) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
