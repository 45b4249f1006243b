"""What run folders say, for tables and figures: nothing that they do not contain."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from om2p_data.envs.registry import TASKS, Task
from om2p_data.errors import UserError
from om2p_data.recipe import parse_overrides
from om2p_data.storage import parse_id, reason
from om2p_data.tiers import Tier
from om2p_train import statistics
from om2p_train.run_folder import EVALUATIONS_FILE, RUN_FILE

_T = TypeVar("_T")


class Timing(BaseModel):
    """Seconds, and 10^6 bytes."""

    training_seconds: float | None = None
    evaluation_seconds: float | None = None
    updates_per_second: float | None = None
    peak_memory_mb: float | None = None


class Policy(BaseModel):
    """One that collected data."""

    name: str
    algorithm: str
    seed: int
    return_mean: float


class Card(BaseModel):
    """What a run wrote down of its data set."""

    summary: str = ""
    episodes: int | None = None
    transitions: int | None = None
    team_return: dict[str, Any] = {}
    policies: tuple[Policy, ...] = ()


class Facts(BaseModel):
    """What run.json says, as far as it is shown. Runs of older versions lack some of it."""

    recipe_name: str
    recipe: dict[str, Any]
    scale: str
    settings: tuple[str, ...] = ()
    task: str
    dataset: str
    dataset_hash: str
    dataset_card: Card = Card()
    dataset_return_mean: float
    random_return_mean: float | None
    seeds: tuple[int, ...] = Field(min_length=1)
    hardware: str = ""
    threads: int | None = None
    started: str = ""
    versions: dict[str, str | None] = {}
    commit: str | None = None
    timing: Timing = Timing()
    finished: bool


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    Attributes:
        name: the recipe's name.
        folder: where it lies.
        recipe: its tables.
        settings: overrides that went into them.
        task: row of the task table, None for environments of other people.
        dataset: data set id; dataset_hash: of its content; dataset_return: its mean team return.
        random_return: mean return of uniform actions, measured when the run started; None where nothing can be played.
        updates: [U], when the policy was evaluated; U = 0 where nothing can be played.
        returns: [U, S], mean over the evaluation episodes of every seed.
        episodes: evaluation episodes of a seed.
        scale: scale of the recipe.
        facts: what else stands in run.json.
    """

    name: str
    folder: Path
    recipe: dict[str, Any]
    settings: tuple[str, ...]
    task: Task | None
    dataset: str
    dataset_hash: str
    dataset_return: float
    random_return: float | None
    updates: np.ndarray
    returns: np.ndarray
    episodes: int
    scale: str
    facts: Facts

    @property
    def final(self) -> np.ndarray:
        """Returns of the final policy, one a seed, [S]; NaN where there are none."""
        return self.returns[-1] if len(self.returns) else np.full(self.returns.shape[1], np.nan)

    @property
    def best(self) -> np.ndarray:
        """Of each seed the best of all evaluations, [S]: what choosing by returns would give; NaN as above."""
        return self.returns.max(0) if len(self.returns) else np.full(self.returns.shape[1], np.nan)

    @property
    def played(self) -> bool:
        """Whether there are returns."""
        return len(self.returns) > 0

    def normalized(self, returns: np.ndarray) -> np.ndarray | None:
        """Scores with 0 for uniform actions and 100 for the expert reference; None where a task has no references."""
        return None if self.task is None else np.array([self.task.normalized(value) for value in returns])

    def option(self, key: str) -> Any:
        """A key of the recipe, `table.key`; None if it has none."""
        value: Any = self.recipe
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True)
class Gap:
    """A run that belongs here and is not finished, or that nobody began."""

    dataset: str
    label: str
    why: str

    def __str__(self) -> str:
        return f"{self.dataset}: {self.label} ({self.why})"


class Compared(NamedTuple):
    """What can be compared: every method has every data set."""

    methods: list[str]
    datasets: list[str]


@dataclass(frozen=True)
class Results:
    """Runs as cells of data sets by methods.

    Attributes:
        runs: all of them, and labels: a name for each, the same for the same method on another data set.
        gaps: what is missing; damaged: what could not be read.
        protocol: name of the scale of reproduction, if it was one.
    """

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    gaps: tuple[Gap, ...] = ()
    damaged: tuple[str, ...] = ()
    protocol: str = ""

    @property
    def datasets(self) -> list[str]:
        """Ids, in the order of the task table and from replay to expert; others in the order of the runs."""
        return sorted(dict.fromkeys(run.dataset for run in self.runs), key=_rank)

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(self.labels))

    @property
    def scales(self) -> str:
        """What the numbers were made at, for titles and notes."""
        return self.protocol or "/".join(sorted({run.scale for run in self.runs}))

    def cell(self, dataset: str, method: str) -> Run | None:
        """The run of a method on a data set."""
        return next((run for run, label in self._pairs() if (run.dataset, label) == (dataset, method)), None)

    def of(self, dataset: str) -> list[Run]:
        """All runs on a data set."""
        return [run for run in self.runs if run.dataset == dataset]

    def compared(self) -> Compared | None:
        """Methods and data sets that can be compared, each method having normalised scores of each data set.

        Either methods or data sets with gaps are left out, whichever leaves more runs; None if there is nothing then.
        """
        scored = {(run.dataset, label) for run, label in self._pairs() if run.played and run.task is not None}
        datasets = [dataset for dataset in self.datasets if any((dataset, method) in scored for method in self.methods)]
        methods = [method for method in self.methods if any((dataset, method) in scored for dataset in datasets)]
        whole = [method for method in methods if all((dataset, method) in scored for dataset in datasets)]
        shared = [dataset for dataset in datasets if all((dataset, method) in scored for method in methods)]
        choices = [Compared(whole, datasets), Compared(methods, shared)]
        possible = [choice for choice in choices if len(choice.methods) > 1 and choice.datasets]
        return max(possible, key=lambda choice: len(choice.methods) * len(choice.datasets), default=None)

    def scores(self, method: str, datasets: Iterable[str]) -> list[np.ndarray]:
        """Normalised final scores of a method, [S] for each data set."""
        found = []
        for dataset in datasets:
            run = self.cell(dataset, method)
            scores = None if run is None else run.normalized(run.final)
            assert scores is not None  # `compared` has such data sets only
            found.append(scores)
        return found

    def levels(self, datasets: Iterable[str]) -> list[float]:
        """Normalised mean returns of data sets of our tasks."""
        found = [self.of(dataset)[0] for dataset in datasets]
        return [run.task.normalized(run.dataset_return) for run in found if run.task is not None]

    def notes(self) -> list[str]:
        """What a reader must know before comparing, one line each."""
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for gap in self.gaps:
            groups[gap.dataset, gap.why].append(gap.label)
        lines = [f"missing on {dataset}: {', '.join(found)} ({why})" for (dataset, why), found in groups.items()]
        versions = Counter(run.facts.versions.get("om2p") or "unknown" for run in self.runs)
        if len(versions) > 1:
            made = ", ".join(f"{version} ({count} runs)" for version, count in sorted(versions.items()))
            lines.append(f"these runs were made by different versions of om2p: {made}")
        if len({run.scale for run in self.runs}) > 1:
            lines.append("runs of different scales stand beside each other")
        lines += [f"left out: {why}" for why in self.damaged]
        for dataset in self.datasets:
            counted = {
                "seeds": {len(run.final) for run in self.of(dataset)},
                "updates": {run.recipe["run"]["updates"] for run in self.of(dataset)},
                "evaluation episodes": {run.episodes for run in self.of(dataset)},
            }
            unequal = [f"{name} ({_listed(counts)})" for name, counts in counted.items() if len(counts) > 1]
            if unequal:
                lines.append(f"{dataset}: methods have different numbers of {', '.join(unequal)}")
        fewest = min((len(run.final) for run in self.runs), default=0)
        if fewest == 1:
            lines.append("a run of one seed has no interval, and tells nothing apart")
        elif fewest in statistics.COVERAGE:
            lines.append(
                f"{fewest} seeds are few: the bootstrap interval of a single data set then holds the true mean about "
                f"{statistics.COVERAGE[fewest]:.0%} of the time, not 95%"
            )
        return lines

    def _pairs(self) -> Iterable[tuple[Run, str]]:
        return zip(self.runs, self.labels, strict=True)


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: not a run folder, the run has not finished, its files are damaged, or another version wrote them.
    """
    run = _read_any(folder)
    if not run.facts.finished:
        raise UserError(f"the run in {folder} has not finished")
    return run


def planned(folder: Path, name: str, dataset: str, settings: Sequence[str], scale: str, recipe: dict[str, Any]) -> Run:
    """A run that nobody has begun: it has a label, and no results."""
    facts = Facts(
        recipe_name=name,
        recipe=recipe,
        scale=scale,
        settings=tuple(settings),
        task="",
        dataset=dataset,
        dataset_hash="",
        dataset_return_mean=float("nan"),
        random_return_mean=None,
        seeds=(0,),
        finished=False,
    )
    return _unfinished(folder, facts)


def gather(places: Sequence[Path]) -> Results:
    """Read run folders, and all run folders below other folders.

    Args:
        places: run folders, which must be whole and finished; below any other folder, unfinished runs are reported as
            gaps, and damaged ones in the notes.

    Raises:
        UserError: a place holds no runs, a run that was named is damaged or not finished, none has finished, or runs
            learned from different contents of a data set of the same name.
    """
    found: dict[Path, Run] = {}
    damaged: list[str] = []
    for place in places:
        if (place / RUN_FILE).is_file():
            found[place.resolve()] = read(place)
            continue
        for folder in _below(place):
            try:
                found.setdefault(folder.resolve(), _read_any(folder))
            except UserError as error:
                damaged.append(str(error))
    every = list(found.values())
    if not any(run.facts.finished for run in every):
        why = [*damaged, *(f"{run.folder} has not finished" for run in every)]
        raise UserError(f"none of these runs can be reported: {'; '.join(why)}")
    present = {(run.dataset, label): None for run, label in zip(every, labels(every), strict=True)}  # ordered
    datasets, methods = ({pair[index]: None for pair in present} for index in (0, 1))
    absent = [Gap(data, method, "no run") for data in datasets for method in methods if (data, method) not in present]
    return assemble(every, {run.folder: "not finished" for run in every if not run.facts.finished}, absent, damaged)


def assemble(
    runs: Sequence[Run], unfinished: Mapping[Path, str], absent: Sequence[Gap] = (), damaged: Sequence[str] = ()
) -> Results:
    """Results of runs, those that have not finished being gaps.

    Args:
        runs: all of them; their labels tell them apart from each other, finished or not.
        unfinished: by folder, how far those are that have no result.
        absent: what else is known to be missing.
        damaged: what could not be read.

    Raises:
        UserError: runs learned from different contents of a data set of the same name.
    """
    named = list(zip(runs, labels(runs), strict=True))
    finished = [(run, label) for run, label in named if run.folder not in unfinished]
    gaps = [Gap(run.dataset, label, unfinished[run.folder]) for run, label in named if run.folder in unfinished]
    first: dict[str, Run] = {}
    for run, _ in finished:
        other = first.setdefault(run.dataset, run)
        if run.dataset_hash != other.dataset_hash:
            raise UserError(
                f"{run.dataset} was another data set for the run in {run.folder} than for the one in {other.folder} "
                "(content hashes differ): report them apart"
            )
    own_runs, own_labels = tuple(run for run, _ in finished), tuple(label for _, label in finished)
    return Results(own_runs, own_labels, (*gaps, *absent), tuple(damaged))


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its recipe's, with the overrides in which its namesakes differ.

    Where runs on the same data set would still have the same name: with all keys in which they differ, or the folder.
    """
    own = [_overrides(run) for run in runs]
    found = []
    for run, settings in zip(runs, own, strict=True):
        namesakes = [other for twin, other in zip(runs, own, strict=True) if twin.name == run.name]
        telling = [key for key in settings if any(other.get(key) != settings[key] for other in namesakes)]
        found.append(_named(run.name, {key: settings[key] for key in telling}))
    found = _told_apart(runs, found, lambda run, rivals: _named(run.name, _differing(run, rivals)))
    return _told_apart(runs, found, lambda run, _: f"{_full(run, runs)} ({run.folder})")


def _full(run: Run, runs: Sequence[Run]) -> str:
    rivals = [other for other in runs if (other.dataset, other.name) == (run.dataset, run.name)]
    return _named(run.name, _differing(run, rivals))


def _told_apart(runs: Sequence[Run], found: Sequence[str], name: Callable[[Run, Sequence[Run]], str]) -> list[str]:
    """Labels, those that runs on one data set share being replaced by what `name` makes of a run and its rivals."""
    shared = Counter((run.dataset, label) for run, label in zip(runs, found, strict=True))
    told = []
    for run, label in zip(runs, found, strict=True):
        rivals = [
            other for other, theirs in zip(runs, found, strict=True) if (other.dataset, theirs) == (run.dataset, label)
        ]
        told.append(label if shared[run.dataset, label] == 1 else name(run, rivals))
    return told


def _named(name: str, values: dict[str, Any]) -> str:
    return ", ".join([name, *(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())])


def _overrides(run: Run) -> dict[str, Any]:
    """Overrides by key, the last of each, and what else the command line decides."""
    return {"scale": run.scale} | dict(_flat(parse_overrides(run.settings)))


def _differing(run: Run, rivals: Sequence[Run]) -> dict[str, Any]:
    own = dict(_flat(run.recipe))
    return {
        key: own[key] for key in sorted(own) if any(dict(_flat(other.recipe)).get(key) != own[key] for other in rivals)
    }


def _flat(tables: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _below(place: Path) -> list[Path]:
    """Run folders in a folder, however deep."""
    if not place.is_dir():
        raise UserError(f"{place} does not exist" if not place.exists() else f"{place} is not a run folder")
    found = []
    for folder, inside, files in os.walk(place):
        if RUN_FILE in files:
            found.append(Path(folder))
            inside.clear()  # a run folder holds no others
        inside.sort()
    if not found:
        raise UserError(f"{place} is not a run folder and holds none: no {RUN_FILE} there or below")
    return found


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / RUN_FILE
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no {RUN_FILE}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise UserError(f"the run in {folder} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(facts, dict):
        raise UserError(f"the run in {folder} is damaged: {RUN_FILE} holds no table")
    return facts


def _checked(folder: Path, facts: dict[str, Any], read: Callable[..., _T], *arguments: Any) -> _T:
    """What `read` returns; where it meets something unexpected, one line that says where that may come from."""
    try:
        return read(*arguments)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what, ours = f"{type(error).__name__}: {_said(error)}", metadata.version("om2p")
        versions = facts.get("versions")
        theirs = versions.get("om2p") if isinstance(versions, dict) else None
        if theirs not in (None, ours):
            raise UserError(
                f"the run in {folder} was written by om2p {theirs} and cannot be read by {ours} ({what}): report it "
                "with that version, or train it again"
            ) from error
        raise UserError(f"the run in {folder} is damaged: {what}") from error


def _read_any(folder: Path) -> Run:
    raw = _facts(folder)
    facts = _checked(folder, raw, Facts.model_validate, raw)
    return _checked(folder, raw, _read if facts.finished else _unfinished, folder, facts)


def _read(folder: Path, facts: Facts) -> Run:
    by_update: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (folder / EVALUATIONS_FILE).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            by_update[int(row["update"])][int(row["seed"])].append(float(row["return"]))
    run = facts.recipe["run"]
    if facts.random_return_mean is not None or by_update:  # it is None where nobody can play
        whole = dict.fromkeys(facts.seeds, run["evaluation_episodes"])
        for update, by_seed in by_update.items():
            if {seed: len(found) for seed, found in by_seed.items()} != whole:
                raise ValueError(f"{EVALUATIONS_FILE} lacks episodes of update {update}")
        if max(by_update, default=0) != run["updates"]:
            raise ValueError(f"{EVALUATIONS_FILE} does not reach update {run['updates']}")
    returns = np.array([[np.mean(by_seed[seed]) for seed in facts.seeds] for by_seed in by_update.values()])
    if not np.isfinite(returns).all():
        raise ValueError(f"{EVALUATIONS_FILE} holds a return that is no number")
    return _run(folder, facts, np.array(list(by_update)), returns)


def _unfinished(folder: Path, facts: Facts) -> Run:
    """A run without returns: those that it has so far are not its result."""
    return _run(folder, facts, np.array([]), np.array([]))


def _run(folder: Path, facts: Facts, updates: np.ndarray, returns: np.ndarray) -> Run:
    return Run(
        name=facts.recipe_name,
        folder=folder,
        recipe=facts.recipe,
        settings=facts.settings,
        task=TASKS.get(facts.task),
        dataset=facts.dataset,
        dataset_hash=facts.dataset_hash,
        dataset_return=facts.dataset_return_mean,
        random_return=facts.random_return_mean,
        updates=updates,
        returns=returns.reshape(len(updates), len(facts.seeds)),
        episodes=facts.recipe["run"]["evaluation_episodes"],
        scale=facts.scale,
        facts=facts,
    )


def _said(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _rank(dataset: str) -> tuple[int, int]:
    """Place of one of our data sets in a listing; others come last."""
    known = parse_id(dataset)
    tiers = [tier.value for tier in Tier]
    return (
        list(TASKS).index(known.task) if known.task in TASKS else len(TASKS),
        tiers.index(known.tier) if known.tier in tiers else len(tiers),
    )


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))
