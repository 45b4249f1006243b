"""The papers' tables and figures as job lists (`recipes/paper/`), at a scale of `recipes/protocols.toml`."""

from __future__ import annotations

import enum
import json
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from om2p_data import recipe
from om2p_data.envs import find
from om2p_data.errors import UserError, unknown
from om2p_data.recipe import Record
from om2p_data.tiers import Tier
from om2p_train import sweep
from om2p_train.config import Scale
from om2p_train.pooling import pool
from om2p_train.recorded_run import Run, planned
from om2p_train.results import Results, assemble, collect, flat
from om2p_train.run_folder import RUN_FILE
from om2p_train.sweep import Job, SweepRecipe, TrainJob

_FOLDER, _PROTOCOLS = "paper", "protocols.toml"  # of the bundled recipes


class Show(enum.Enum):
    """How the runs of a part are laid before the reader."""

    TABLE = "table"  # data sets by methods, beside the published numbers
    COST = "cost"  # seconds and memory of each method
    AXIS = "axis"  # return against one key of the recipe
    BARS = "bars"  # each method's average over the data sets
    CHOICE = "choice"  # data sets by variants of one recipe, of which the best is chosen


class Part(Record):
    """One sweep of an experiment, and how it is shown.

    What is left out of `seeds` comes from the protocol; `settings` are added to the protocol's.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="of the files that show it")
    title: str
    claim: str = Field(default="", description="what the source says of it, where it gives no numbers that we have")
    show: Show
    axis: str | None = Field(default=None, description="table.key of the recipe on the x axis")
    tasks: tuple[str, ...] = Field(min_length=1)
    tiers: tuple[Tier, ...] = Field(min_length=1)
    algorithms: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] | None = None
    settings: tuple[str, ...] = ()
    variants: dict[str, tuple[str, ...]] = Field(default={"": ()}, min_length=1)

    @property
    def named(self) -> bool:
        """Whether its methods are called by the names of variants; elsewhere than in a table their values tell more."""
        return self.show is Show.TABLE and len(self.variants) > 1

    @model_validator(mode="after")
    def _fits_its_show(self) -> Part:
        if (self.axis is not None) != (self.show is Show.AXIS):
            raise ValueError("a part has an axis where show = 'axis', and only there")
        if self.show is Show.CHOICE and (len(self.algorithms) > 1 or len(self.variants) < 2):
            raise ValueError("where show = 'choice', a part has one algorithm and two variants or more")
        return self


class Experiment(Record):
    """A table or figure.

    Attributes:
        published: task -> tier -> recipe -> [mean] or [mean, standard deviation over seeds] of raw team returns.
        published_cost: recipe -> [MB, seconds].
    """

    title: str
    source: str = Field(description="where the published numbers stand")
    one_at_a_time: bool = Field(default=False, description="whether its runs are timed")
    part: tuple[Part, ...] = Field(min_length=1)
    published: dict[str, dict[Tier, dict[str, tuple[float, ...]]]] = Field(default={})
    published_cost: dict[str, tuple[float, float]] = Field(default={})


class Protocol(Record):
    """How much of everything is taken (keys as in a sweep file)."""

    scale: Scale
    device: str
    seeds: tuple[int, ...]
    transitions: int
    settings: tuple[str, ...] = ()


def names() -> list[str]:
    """The experiments that can be reproduced."""
    return recipe.bundled(_FOLDER)


def read(name: str) -> Experiment:
    """One of them.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        raise unknown("experiment", name, names())
    tables, label = recipe.read(name, _FOLDER)
    return recipe.fill(Experiment, tables, label)


def scales() -> list[str]:
    """Names of the scales of reproduction, the smallest first."""
    return list(_protocols())


def protocol(name: str) -> Protocol:
    """A scale of reproduction: `cpu`, `paper` or `strict`.

    Raises:
        UserError: there is none of that name.
    """
    tables = _protocols()
    if name not in tables:
        raise unknown("scale", name, tables)
    return recipe.fill(Protocol, tables[name], _PROTOCOLS, name)


def narrowed(
    experiment: Experiment,
    tasks: Sequence[str],
    tiers: Sequence[Tier],
    recipes: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
) -> list[Part]:
    """The parts of an experiment with some of its tasks, tiers and recipes, empty means all; or with other seeds.

    Raises:
        UserError: no such task, a recipe that it does not have, a seed twice, or nothing is left.
    """
    has = list(dict.fromkeys(name for part in experiment.part for name in part.algorithms))
    for name in recipes:
        if name not in has:
            raise unknown("recipe in the experiment", name, has)
    if seeds is not None and len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be different numbers, not {', '.join(map(str, seeds))}")
    wanted = {find(task).name for task in tasks}
    parts = []
    for part in experiment.part:
        kept = tuple(task for task in part.tasks if not wanted or find(task).name in wanted)
        some = tuple(tier for tier in part.tiers if not tiers or tier in tiers)
        run = tuple(name for name in part.algorithms if not recipes or name in recipes)
        if kept and some and run:
            update = {"tasks": kept, "tiers": some, "algorithms": run, "seeds": tuple(seeds) if seeds else part.seeds}
            parts.append(part.model_copy(update=update))
    if not parts:
        known = ", ".join(sorted({find(task).alias for part in experiment.part for task in part.tasks}))
        levels = ", ".join(dict.fromkeys(tier.value for part in experiment.part for tier in part.tiers))
        raise UserError(f"the experiment has none of these: its tasks are {known}, its tiers {levels}")
    return parts


def jobs(
    parts: Sequence[Part], amount: Protocol, out: Path, root: Path | None = None
) -> tuple[list[Job], dict[str, list[TrainJob]]]:
    """What an experiment needs.

    Args:
        parts: of the experiment.
        amount: the scale of reproduction.
        out: folder for the runs.
        root: folder of data sets; by default Minari's.

    Returns:
        All jobs, data sets first and nothing twice; and the cells of each part by its name.

    Raises:
        UserError: a recipe is wrong.
    """
    every: dict[str, Job] = {}
    cells: dict[str, list[TrainJob]] = {}
    for part in parts:
        found = sweep.jobs(_sweep(part, amount), out, Path(), root)
        every |= {job.name: job for job in found}
        cells[part.name] = [job for job in found if isinstance(job, TrainJob)]
    return sorted(every.values(), key=lambda job: isinstance(job, TrainJob)), cells


def assign(
    parts: Sequence[Part], amount: Protocol, runs: Sequence[Run]
) -> tuple[list[tuple[Part, Results]], list[Run]]:
    """Runs from anywhere as those of an experiment: neither their folders nor any data are needed.

    A run belongs to a cell that has its data set, recipe, scale and settings. Of several the one with most seeds
    counts, of as many the latest, and the results say so; they also say whose recipe is another one today.

    Args:
        parts: of the experiment.
        amount: the scale of reproduction.
        runs: finished ones.

    Returns:
        The results of each part, cells without a run being gaps; and the runs that belong to no cell.

    Raises:
        UserError: runs of a part learned from different contents of a data set.
    """
    _, cells = jobs(parts, amount, Path())
    every = [cell for part in parts for cell in cells[part.name]]
    belonging = {cell.folder: [run for run in runs if _belongs(run, cell)] for cell in every}
    used = {id(run) for some in belonging.values() for run in some}
    found = [(part, _results(part, cells[part.name], belonging)) for part in parts]
    return found, [run for run in runs if id(run) not in used]


def standing(
    experiment: Experiment, amount: Protocol, asked: Mapping[str, Sequence[TrainJob]], folder: Path
) -> list[tuple[Part, Results]]:
    """All finished runs of an experiment in a folder, whichever call made them; its gaps are those of what was asked.

    Args:
        experiment: what they belong to.
        amount: the scale of reproduction.
        asked: the cells of each part that a call was about.
        folder: of the runs.

    Returns:
        The results of the parts that have any.

    Raises:
        UserError: a run that was asked for is damaged, or runs of a part learned from different data.
    """
    runs, damaged = collect([folder]) if any(folder.rglob(RUN_FILE)) else ([], [])
    found, _ = assign(experiment.part, amount, pool(run for run in runs if run.facts.finished))
    named = {part.name: part.named for part in experiment.part}
    gaps = {name: sweep.results(cells, named=named[name]).gaps for name, cells in asked.items()}
    own = [(part, replace(one, gaps=gaps.get(part.name, ()), damaged=tuple(damaged))) for part, one in found]
    return [(part, results) for part, results in own if results.runs or results.gaps]


def _belongs(run: Run, cell: TrainJob) -> bool:
    own = (run.dataset, run.name, run.scale, {*run.settings})
    return own == (cell.dataset_id, cell.recipe_name, cell.scale.value, {*cell.settings})


def _results(part: Part, cells: Sequence[TrainJob], belonging: Mapping[Path, Sequence[Run]]) -> Results:
    """Results of a part's cells. `belonging`: by a cell's folder, the runs to choose from."""
    runs: list[Run] = []
    absent: dict[Path, str] = {}
    remarks: list[str] = []
    earlier: dict[tuple[str, ...], list[str]] = defaultdict(list)  # changed keys -> recipes
    for cell in cells:
        fitting = sorted(belonging[cell.folder], key=lambda run: (len(run.facts.seeds), run.facts.started))
        if not fitting:
            name = (cell.folder, cell.recipe_name, cell.dataset_id)
            runs.append(planned(*name, cell.settings, cell.scale.value, cell.recipe))
            absent[cell.folder] = "no run"
            continue
        run = fitting[-1]
        runs.append(run)
        if len(fitting) > 1:
            seeds = ", ".join(map(str, run.facts.seeds))
            remarks.append(
                f"{cell.label} on {cell.dataset_id} was run {len(fitting)} times: the run of seeds {seeds}, started "
                f"{run.facts.started}, is shown"
            )
        changed = _changed(run.recipe, cell.recipe)
        if changed:
            earlier[changed].append(cell.recipe_name)
    if earlier:
        count = f"{sum(map(len, earlier.values()))} of {len(runs) - len(absent)} runs"
        which = (f"{', '.join(dict.fromkeys(names))} ({', '.join(keys)})" for keys, names in earlier.items())
        remarks.append(f"{count} were made with an earlier form of their recipe: {'; '.join(which)}")
    names = [cell.label for cell in cells] if part.named else None
    return replace(assemble(runs, absent, named=names), remarks=tuple(remarks))


def _changed(recipe: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys in which a recipe, as it was written down, differs from what it is now."""
    before, after = dict(flat(recipe)), dict(flat(json.loads(json.dumps(now))))
    return tuple(sorted(key for key in before | after if before.get(key) != after.get(key)))


def _protocols() -> dict[str, Any]:
    return tomllib.loads(recipe.bundled_text(_PROTOCOLS))


def _sweep(part: Part, amount: Protocol) -> SweepRecipe:
    return SweepRecipe(
        tasks=part.tasks,
        tiers=part.tiers,
        algorithms=part.algorithms,
        seeds=part.seeds or amount.seeds,
        scale=amount.scale,
        device=amount.device,
        settings=(*amount.settings, *part.settings),
        variants=part.variants,
        transitions=amount.transitions,
    )
