"""Training recipes: from a TOML file and a data set's task and tier to one typed, frozen record."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from om2p_data import recipe
from om2p_data.envs.registry import TASKS
from om2p_data.errors import UserError, unknown
from om2p_data.recipe import Record
from om2p_data.tiers import Tier
from om2p_train import algorithms
from om2p_train.algorithms import Options
from om2p_train.batches import DataConfig
from om2p_train.compute import ComputeConfig
from om2p_train.learner import OptimizerConfig
from om2p_train.networks import NetworkConfig

_LAYERS = ("run", "data", "network", "optimizer", "compute", "options")
_TABLES = ("algorithm", "base", "fixed", "name", "scale", "task", *_LAYERS)


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

    Later layers win: the base recipe, the recipe's own tables, `[scale.<scale>]`, `[task.<task>]`,
    `[task.<task>.<tier>]`, the same two below `[scale.<scale>.task]`, `[fixed]` (what makes a recipe another one than
    its base, whatever the task), and last the settings of the command line.

    Args:
        source: name of a bundled recipe or path of a TOML file.
        task, tier: what the data set holds, a task of ours or the name of somebody's environment; a set of no known
            tier gets the task's layer only.
        scale: which `[scale]` section, `cpu` by default; a recipe that a run has resolved has its own.
        settings: overrides, `"options.eta=0.5"`.

    Raises:
        UserError: no such recipe, unknown key, wrong type, impossible value.
    """
    tables, label = _with_base(source)
    for key in tables:
        if key not in _TABLES:
            raise UserError(f"{label}: {unknown('key', key, _TABLES)}")
    tables, scale = _at_scale(tables, scale, label)
    layers = {key: tables[key] for key in _LAYERS if key in tables}
    at_scale = _section(tables, "scale", scale.value, [entry.value for entry in Scale], label)
    layers = recipe.merge(layers, {key: value for key, value in at_scale.items() if key != "task"})
    for place in (tables, at_scale):
        layers = recipe.merge(layers, _of_task(place, task, tier, label))
    layers = recipe.merge(layers, _table(tables, "fixed", label))
    layers = recipe.merge(layers, recipe.parse_overrides(settings))
    for key in layers:
        if key not in _LAYERS:
            raise UserError(f"{label}: {unknown('key', key, _LAYERS)}")
    if "algorithm" not in tables:
        raise UserError(f"{label}: key 'algorithm' is missing; valid: {', '.join(algorithms.ALGORITHMS)}")
    algorithm = algorithms.find(_name(tables["algorithm"], "algorithm", label))
    return TrainRecipe(
        name=name_of(source),
        scale=scale,
        algorithm=tables["algorithm"],
        run=recipe.fill(RunConfig, layers.get("run", {}), label, "run"),
        data=recipe.fill(DataConfig, layers.get("data", {}), label, "data"),
        network=recipe.fill(NetworkConfig, layers.get("network", {}), label, "network"),
        optimizer=recipe.fill(OptimizerConfig, layers.get("optimizer", {}), label, "optimizer"),
        compute=recipe.fill(ComputeConfig, layers.get("compute", {}), label, "compute"),
        options=recipe.fill(algorithm.options_type, layers.get("options", {}), label, "options"),
        settings=tuple(settings),
    )


def _with_base(source: str | Path) -> tuple[dict[str, Any], str]:
    """A recipe laid over the recipe that its `base` names (a bundled name, or a path beside the file)."""
    tables, label = recipe.read(source, "train")
    base, place = tables.pop("base", None), Path(source)
    seen = {str(source)}
    while base is not None:
        name = _name(base, "base", label)
        beside = place.parent / name
        below = beside if beside.suffix == ".toml" else name
        if str(below) in seen:
            raise UserError(f"{label}: base = {base!r} leads back to itself")
        seen.add(str(below))
        under, _ = recipe.read(below, "train")
        base, place = under.pop("base", None), Path(below)
        under.pop("name", None)  # of a resolved recipe, whose name is not this one's
        tables = recipe.merge(under, tables)
    return tables, label


def _at_scale(tables: dict[str, Any], scale: Scale | None, label: str) -> tuple[dict[str, Any], Scale]:
    """A recipe with `[scale]` sections only, and the scale it is resolved at, which a resolved recipe states itself."""
    own = tables.get("scale")
    if not isinstance(own, str):
        return tables, scale or Scale.CPU
    if own not in [entry.value for entry in Scale]:
        raise UserError(f"{label}: {unknown('scale', own, [entry.value for entry in Scale])}")
    if scale not in (None, Scale(own)):
        raise UserError(f"{label} is resolved at scale {own}, and scale {scale.value} cannot be had from it")
    return {key: value for key, value in tables.items() if key != "scale"}, Scale(own)


def _of_task(tables: Mapping[str, Any], task: str, tier: Tier | None, label: str) -> dict[str, Any]:
    """What `[task.<task>]` and, over it, `[task.<task>.<tier>]` say."""
    by_task = _section(tables, "task", task, sorted({*TASKS, task}), label)
    tiers = [entry.value for entry in Tier]
    for key in by_task:
        if key not in (*_LAYERS, *tiers):
            raise UserError(f"{label}: {unknown(f'key in [task.{task}]', key, [*_LAYERS, *tiers])}")
    layers = {key: value for key, value in by_task.items() if key not in tiers}
    return layers if tier is None else recipe.merge(layers, _table(by_task, tier.value, label))


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
