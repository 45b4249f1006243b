"""Training recipes: from a TOML file and a data set's task and tier to one typed, frozen record."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from om2p_data import recipe
from om2p_data.envs.registry import TASKS, Family
from om2p_data.errors import UserError, nearest, unknown
from om2p_data.recipe import Record
from om2p_data.tiers import Tier
from om2p_train import algorithms
from om2p_train.algorithms import Options
from om2p_train.batches import DataConfig
from om2p_train.compute import ComputeConfig
from om2p_train.learner import OptimizerConfig
from om2p_train.networks import NetworkConfig

_LAYERS = ("run", "data", "network", "optimizer", "compute", "options")
_TABLES = ("algorithm", "base", "name", "scale", "task", *_LAYERS)
_ANY = "any"  # section of [task] that holds for all tasks
_ALIKE = 0.8  # likeness above which a task's name is a slip of the pen


class Scale(enum.Enum):
    """Which size of networks and number of updates a recipe is run at."""

    CPU = "cpu"
    PAPER = "paper"


class RunConfig(Record):
    """The loop around the updates."""

    updates: int = Field(gt=0, le=10**9, description="steps of the optimiser")
    evaluate_every: int = Field(gt=0, description="updates between two evaluations")
    evaluation_episodes: int = Field(gt=0, description="of each evaluation and seed")
    log_every: int = Field(default=100, gt=0, description="updates between two rows of metrics.csv")
    checkpoint_every: int = Field(default=1_000, gt=0, description="updates that an interruption can cost")


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides what a run learns, besides its data and seeds.

    `settings` are the overrides that went into the tables: they tell variants of a recipe apart, whatever the task.
    """

    name: str
    scale: Scale
    algorithm: str
    run: RunConfig
    data: DataConfig
    network: NetworkConfig
    optimizer: OptimizerConfig
    compute: ComputeConfig
    options: Options
    settings: tuple[str, ...] = field(default=(), compare=False)

    def tables(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return {"algorithm": self.algorithm} | {
            layer: getattr(self, layer).model_dump(mode="json", exclude_none=True) for layer in _LAYERS
        }

    def file(self) -> dict[str, Any]:
        """Contents of a recipe file that runs the same again, whatever the task."""
        return {"name": self.name, "scale": self.scale.value} | self.tables()


def check_exists(source: str | Path) -> None:
    """Find out whether a recipe can be read, before a data set is opened for it.

    Raises:
        UserError: no such recipe.
    """
    recipe.read(source, "train")


def name_of(source: str | Path) -> str:
    """The name that a recipe gives itself, as those do that a run has resolved, or that of its file.

    Raises:
        UserError: no such recipe.
    """
    tables, label = recipe.read(source, "train")
    return _name(tables.get("name", Path(source).stem), "name", label)


def load(
    source: str | Path,
    task: str,
    tier: Tier | None,
    scale: Scale | None = None,
    settings: Sequence[str] = (),
) -> TrainRecipe:
    """Resolve a recipe for a task and tier.

    Later layers win: all that the base recipe says, its sections among it; the recipe's own tables; `[scale.<scale>]`;
    `[task.any]`, `[task.any.<tier>]`, the same two for the task's family, then for the task itself; the same six below
    `[scale.<scale>.task]`; and last the settings of the command line. A task's family is the simulator that it runs on,
    `particle` or `locomotion`.

    Args:
        source: name of a bundled recipe or path of a TOML file.
        task, tier: what the data set holds, a task of ours or the name of somebody's environment; a set of no known
            tier gets the task's layer only.
        scale: which `[scale]` section, `cpu` by default; a recipe that a run has resolved has its own.
        settings: overrides, `"options.eta=0.5"`.

    Raises:
        UserError: no such recipe, unknown key, wrong type, impossible value or combination.
    """
    files = _with_bases(source)
    scale = _scale(files[-1], scale)
    layers: dict[str, Any] = {}
    for file in files:
        layers = recipe.merge(layers, _layers_of(file, task, tier, _scale(file, scale)))
    label = files[-1].label
    layers = recipe.merge(layers, recipe.parse_overrides(settings))
    for key in layers:
        if key not in _LAYERS:
            raise UserError(f"{label}: {unknown('key', key, _LAYERS)}")
    named = [file.tables["algorithm"] for file in files if "algorithm" in file.tables]
    if not named:
        raise UserError(f"{label}: key 'algorithm' is missing; valid: {', '.join(algorithms.ALGORITHMS)}")
    name = _name(named[-1], "algorithm", label)
    algorithm = algorithms.find(name)
    resolved = TrainRecipe(
        name=name_of(source),
        scale=scale,
        algorithm=name,
        run=recipe.fill(RunConfig, layers.get("run", {}), label, "run"),
        data=recipe.fill(DataConfig, layers.get("data", {}), label, "data"),
        network=recipe.fill(NetworkConfig, layers.get("network", {}), label, "network"),
        optimizer=recipe.fill(OptimizerConfig, layers.get("optimizer", {}), label, "optimizer"),
        compute=recipe.fill(ComputeConfig, layers.get("compute", {}), label, "compute"),
        options=recipe.fill(algorithm.options_type, layers.get("options", {}), label, "options"),
        settings=tuple(settings),
    )
    resolved.options.check(resolved.compute.precision)
    return resolved


@dataclass(frozen=True)
class _File:
    """A recipe as it is written; `label` names it in messages."""

    tables: dict[str, Any]
    label: str


def _with_bases(source: str | Path) -> list[_File]:
    """A recipe after the recipe that its `base` names (a bundled name, or a path beside the file), and so on."""
    files: list[_File] = []
    at, seen = source, {str(source)}
    while True:
        tables, label = recipe.read(at, "train")
        for key in tables:
            if key not in _TABLES:
                raise UserError(f"{label}: {unknown('key', key, _TABLES)}")
        files.insert(0, _File(tables, label))
        if "base" not in tables:
            return files
        base = _name(tables["base"], "base", label)
        beside = Path(at).parent / base
        at = beside if beside.suffix == ".toml" else base
        if str(at) in seen:
            raise UserError(f"{label}: base = {base!r} leads back to itself")
        seen.add(str(at))


def _scale(file: _File, scale: Scale | None) -> Scale:
    """The scale that is asked for, or that of a resolved recipe, which states its own."""
    own = file.tables.get("scale")
    if not isinstance(own, str):
        return scale or Scale.CPU
    if own not in [entry.value for entry in Scale]:
        raise UserError(f"{file.label}: {unknown('scale', own, [entry.value for entry in Scale])}")
    if scale not in (None, Scale(own)):
        raise UserError(f"{file.label} is resolved at scale {own}, and scale {scale.value} cannot be had from it")
    return Scale(own)


def _layers_of(file: _File, task: str, tier: Tier | None, scale: Scale) -> dict[str, Any]:
    """What one file says of a task and tier at a scale."""
    tables, label = file.tables, file.label
    layers = {key: tables[key] for key in _LAYERS if key in tables}
    at_scale: dict[str, Any] = {}
    if not isinstance(tables.get("scale"), str):  # which a resolved recipe has instead of sections
        at_scale = _section(tables, "scale", scale.value, [entry.value for entry in Scale], label)
    for key, value in at_scale.items():
        if key not in (*_LAYERS, "task"):
            raise UserError(f"{label}: {unknown(f'key in [scale.{scale.value}]', key, [*_LAYERS, 'task'])}")
        if key != "task":
            layers = recipe.merge(layers, {key: value})
    for place in (tables, at_scale):
        layers = recipe.merge(layers, _of_task(place, task, tier, label))
    return layers


def _of_task(tables: Mapping[str, Any], task: str, tier: Tier | None, label: str) -> dict[str, Any]:
    """What the sections of `[task]` say of a task and tier: those for any task, for its family, and its own."""
    sections = _table(tables, "task", label)
    known = [_ANY, *(family.value for family in Family), *TASKS]
    for name in sections:
        # Other names are tasks of other people, unless one of ours is meant.
        meant = name in {known_task.alias for known_task in TASKS.values()} or nearest(name, known, cutoff=_ALIKE)
        if meant and name not in (*known, task):
            raise UserError(f"{label}: {unknown('section in [task]', name, known)}")
    tiers = [entry.value for entry in Tier]
    layers: dict[str, Any] = {}
    for name in (_ANY, *([TASKS[task].family.value] if task in TASKS else []), task):
        section = _table(sections, name, label)
        for key in section:
            if key not in (*_LAYERS, *tiers):
                raise UserError(f"{label}: {unknown(f'key in [task.{name}]', key, [*_LAYERS, *tiers])}")
        layers = recipe.merge(layers, {key: value for key, value in section.items() if key not in tiers})
        if tier is not None:
            layers = recipe.merge(layers, _table(section, tier.value, label))
    return layers


def _section(tables: Mapping[str, Any], kind: str, name: str, valid: list[str], label: str) -> dict[str, Any]:
    sections = _table(tables, kind, label)
    for key in sections:
        if key not in valid:
            raise UserError(f"{label}: {unknown(f'section in [{kind}]', key, valid)}")
    return _table(sections, name, label)


def _table(tables: Mapping[str, Any], key: str, label: str) -> dict[str, Any]:
    value = tables.get(key, {})
    if not isinstance(value, dict):
        raise UserError(f"{label}: {key} = {value!r} is wrong: it must be a table")
    return value


def _name(value: Any, key: str, label: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{label}: {key} = {value!r} is wrong: it must be a name")
    return value
