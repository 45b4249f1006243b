"""Job lists: a sweep file becomes data sets to make and runs to train.

A cell is one recipe on one data set, its seeds stacked in one run. Its folder is named by what decides its result, so
that the same file finds its runs again, and an edited one keeps those that the edit does not touch.
"""

from __future__ import annotations

import abc
import enum
import hashlib
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from om2p_data import metadata
from om2p_data.envs import find
from om2p_data.errors import UserError
from om2p_data.recipe import Record, fill
from om2p_data.storage import datasets_root, parse_id, reason
from om2p_data.tiers import DEFAULT_TRANSITIONS, Tier
from om2p_train import config, run_folder
from om2p_train.config import Scale, TrainRecipe
from om2p_train.recorded_run import planned
from om2p_train.recorded_run import read as read_run
from om2p_train.results import Results, assemble

_HASH_LETTERS = 10
_MOST_JOBS = 10_000
_LONGEST_NAME = 100  # letters of a folder, besides the hash


class SweepRecipe(Record):
    """A sweep file: every task with every tier, every algorithm and every variant."""

    tasks: tuple[str, ...] = Field(min_length=1, description="names or aliases")
    tiers: tuple[Tier, ...] = Field(min_length=1)
    algorithms: tuple[str, ...] = Field(min_length=1, description="recipes: bundled names, or files beside this one")
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1, description="stacked in the run of each cell")
    scale: Scale = Scale.CPU
    device: str = Field(default="cpu", pattern="^(cpu|cuda)$")
    settings: tuple[str, ...] = Field(default=(), description="overrides of every recipe, such as run.updates=1000")
    variants: dict[str, tuple[str, ...]] = Field(
        default={"": ()}, min_length=1, description="name -> further overrides; each makes cells of its own"
    )
    transitions: PositiveInt | None = Field(default=None, description="of data sets that have to be made")
    data_seed: NonNegativeInt = 0
    version: NonNegativeInt = Field(default=0, description="N in the ids of the data sets")

    @model_validator(mode="after")
    def _nothing_twice(self) -> SweepRecipe:
        for name in ("tasks", "tiers", "algorithms", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names something twice")
        return self


class State(enum.Enum):
    """How far a job is."""

    WAITING = "waiting"
    BEGUN = "begun"
    DONE = "done"


@dataclass(frozen=True)
class Job(abc.ABC):
    """Something that a process does.

    Attributes:
        name: unique in the list, and fit for a file's name.
        needs: names of the jobs that must be done before.
    """

    program: ClassVar[str]  # `om2p-data` or `om2p-train`

    name: str
    needs: tuple[str, ...]

    @property
    @abc.abstractmethod
    def arguments(self) -> tuple[str, ...]:
        """Of that program; given again, they go on where a broken job stopped."""

    @abc.abstractmethod
    def state(self) -> State:
        """Read from the disk."""

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join([self.program, *self.arguments])


@dataclass(frozen=True)
class DataJob(Job):
    """A data set to be made, or found."""

    dataset_id: str
    alias: str
    tier: Tier
    transitions: int | None
    seed: int
    version: int
    root: Path | None

    program = "om2p-data"

    @property
    def arguments(self) -> tuple[str, ...]:
        words = ["generate", "--env", self.alias, "--tier", self.tier.value, "--seed", str(self.seed), "--quiet"]
        if self.transitions is not None:
            words += ["--transitions", str(self.transitions)]
        if self.version:
            words += ["--version", str(self.version)]
        return (*words, *_root(self.root))

    def content(self) -> dict[str, Any] | None:
        """Metadata of the data set, None if there is none.

        Raises:
            UserError: they are damaged.
        """
        folder = datasets_root(self.root) / self.dataset_id
        return metadata.read(folder, parse_id(self.dataset_id)) if folder.is_dir() else None

    def state(self) -> State:
        content = self.content()
        if content is None:
            return State.WAITING
        made = content.get("collection", {})
        size = None if self.tier is Tier.MEDIUM_REPLAY else DEFAULT_TRANSITIONS  # the former is as long as it is
        for key, field, wanted, usual in (
            ("transitions", "transitions_requested", self.transitions, size),
            ("data_seed", "seed", self.seed, 0),
        ):
            if field in made and (made[field] or usual) != (wanted or usual):
                raise UserError(
                    f"{self.dataset_id} is there already, made with {key} = {_said(made[field])}, and the sweep wants "
                    f"{key} = {_said(wanted)}: keep the other in a folder of its own (--root), or change version"
                )
        return State.DONE


@dataclass(frozen=True)
class TrainJob(Job):
    """One cell: a recipe on a data set, all seeds in one run."""

    dataset_id: str
    algorithm: str
    recipe_name: str
    label: str
    seeds: tuple[int, ...]
    scale: Scale
    device: str
    settings: tuple[str, ...]
    folder: Path
    data: DataJob
    recipe: dict[str, Any]

    program = "om2p-train"

    @property
    def arguments(self) -> tuple[str, ...]:
        words = ["run", "--dataset", self.dataset_id, "--algo", self.algorithm]
        words += ["--seeds", ",".join(map(str, self.seeds)), "--scale", self.scale.value, "--device", self.device]
        words += [word for setting in self.settings for word in ("--set", setting)]
        return (*words, "--out", str(self.folder), "--resume", "--quiet", "--no-tensorboard", *_root(self.data.root))

    def state(self) -> State:
        if not run_folder.holds_run(self.folder):
            return State.WAITING
        facts = run_folder.read_facts(self.folder)
        content = self.data.content()
        if content is not None and content.get("content_hash") != facts["dataset_hash"]:
            raise UserError(
                f"{self.folder} learned from other contents of {self.dataset_id} than are there now: remove that "
                "folder, or choose another --out"
            )
        if facts["recipe"] != json.loads(json.dumps(self.recipe)):
            raise UserError(f"{self.folder} holds a run of another recipe, which was changed meanwhile: remove it")
        return State.DONE if facts["finished"] else State.BEGUN


def read(path: Path) -> SweepRecipe:
    """Read a sweep file.

    Raises:
        UserError: it is missing, no TOML, or has unknown keys or impossible values.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the sweep {path}: {reason(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    return fill(SweepRecipe, tables, str(path))


def jobs(recipe: SweepRecipe, out: Path, base: Path, root: Path | None = None) -> list[Job]:
    """All jobs of a sweep: data sets first, then its cells.

    Args:
        recipe: the sweep.
        out: folder for the runs.
        base: folder that recipe files are looked for in.
        root: folder of data sets; by default Minari's.

    Raises:
        UserError: no such task, recipe or key; an impossible value; two cells that are the same run; too many cells.
    """
    size = len(recipe.tasks) * len(recipe.tiers) * len(recipe.algorithms) * len(recipe.variants)
    if size > _MOST_JOBS:
        raise UserError(f"the sweep has {size:,} cells: more than {_MOST_JOBS:,} are a slip")
    made: dict[str, DataJob] = {}
    cells: dict[Path, TrainJob] = {}
    order = itertools.product(recipe.tasks, recipe.tiers, recipe.algorithms, recipe.variants.items())
    for task_name, tier, algorithm, (variant, own) in order:
        task = find(task_name)
        dataset_id = f"om2p/{task.name}/{tier.value}-v{recipe.version}"
        data = made.setdefault(
            dataset_id,
            DataJob(
                name=_file_name(f"data-{task.alias}-{tier.value}"),
                needs=(),
                dataset_id=dataset_id,
                alias=task.alias,
                tier=tier,
                transitions=None if tier is Tier.MEDIUM_REPLAY else recipe.transitions,  # it is as long as it is
                seed=recipe.data_seed,
                version=recipe.version,
                root=root,
            ),
        )
        source = str(base / algorithm) if algorithm.endswith(".toml") else algorithm
        settings = (*recipe.settings, *own)
        resolved = config.load(source, task.name, tier, recipe.scale, settings)
        label = resolved.name + (f", {variant}" if variant else "")
        identity = _identity(recipe, data, resolved)
        name = f"{_file_name(f'{task.alias}-{tier.value}-{resolved.name}')}-{_digest(identity)}"
        job = TrainJob(
            name=name,
            needs=(data.name,),
            dataset_id=dataset_id,
            algorithm=source,
            recipe_name=resolved.name,
            label=label,
            seeds=recipe.seeds,
            scale=recipe.scale,
            device=recipe.device,
            settings=settings,
            folder=out / name,
            data=data,
            recipe=resolved.tables(),
        )
        twin = cells.get(job.folder)
        if twin is not None:
            raise UserError(f"{twin.label!r} and {label!r} on {dataset_id} are the same run: their settings are equal")
        cells[job.folder] = job
    return [*made.values(), *cells.values()]


def results(every: Sequence[Job], *, named: bool = False) -> Results:
    """The runs of the cells that are done; the others are its gaps.

    Args:
        every: the job list.
        named: whether methods are called by the names of variants, not by the overrides in which they differ.

    Raises:
        UserError: a run is damaged, or learned from other data than its fellows.
    """
    runs, unfinished = [], {}
    cells = [job for job in every if isinstance(job, TrainJob)]
    for cell in cells:
        state = cell.state()
        if state is State.DONE:
            runs.append(read_run(cell.folder))
            continue
        name = (cell.folder, cell.recipe_name, cell.dataset_id)
        runs.append(planned(*name, cell.settings, cell.scale.value, cell.recipe))
        unfinished[cell.folder] = "not finished" if state is State.BEGUN else "not begun"
    return assemble(runs, unfinished, named=[cell.label for cell in cells] if named else None)


def _identity(recipe: SweepRecipe, data: DataJob, resolved: TrainRecipe) -> dict[str, Any]:
    """What decides a cell's numbers."""
    return {
        "dataset": data.dataset_id,
        "transitions": data.transitions,
        "data_seed": data.seed,
        "recipe": resolved.tables(),
        "scale": resolved.scale.value,
        "seeds": sorted(recipe.seeds),
        "device": recipe.device,
    }


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:_HASH_LETTERS]


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text)[:_LONGEST_NAME]


def _said(value: object) -> object:
    return "the default" if value is None else value


def _root(root: Path | None) -> Sequence[str]:
    return () if root is None else ("--root", str(root))
