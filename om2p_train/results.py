"""What run folders and records say, for tables and figures: nothing that they do not contain."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from om2p_data.envs.registry import TASKS
from om2p_data.errors import UserError
from om2p_data.recipe import parse_overrides
from om2p_data.storage import parse_id
from om2p_data.tiers import Tier
from om2p_train import records, statistics
from om2p_train.pooling import pool
from om2p_train.recorded_run import Run, read, read_any
from om2p_train.run_folder import RUN_FILE

_MOST_NAMES = 12  # of what is missing on one data set


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
        gaps: what is missing; damaged: what could not be read; remarks: what else a reader must know.
        protocol: name of the scale of reproduction, if it was one.
        order: of the methods, those without a run among them; others come after.
    """

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    gaps: tuple[Gap, ...] = ()
    damaged: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    protocol: str = ""
    order: tuple[str, ...] = ()

    @property
    def datasets(self) -> list[str]:
        """Ids, in the order of the task table and from replay to expert; others in the order of the runs."""
        return sorted(dict.fromkeys(run.dataset for run in self.runs), key=_rank)

    @property
    def methods(self) -> list[str]:
        return [method for method in dict.fromkeys((*self.order, *self.labels)) if method in self.labels]

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

        What is left out has gaps. What stays is the largest block that the data sets of two methods, or of all, allow;
        None if there is nothing to compare.
        """
        scored = {(run.dataset, label) for run, label in self._pairs() if run.played and run.task is not None}
        has: dict[str, set[str]] = defaultdict(set)
        for dataset, label in scored:
            has[label].add(dataset)
        # A block of methods by data sets is whole for what some methods have in common: two of them, or all.
        common = {frozenset(one & other) for one in has.values() for other in has.values()}
        common |= {frozenset.intersection(*common)} if common else set()
        choices = []
        for shared in common:
            methods = [method for method in self.methods if has[method] >= shared]
            choices.append(Compared(methods, [dataset for dataset in self.datasets if dataset in shared]))
        possible = [choice for choice in choices if len(choice.methods) > 1 and choice.datasets]
        return max(
            possible,
            key=lambda choice: (len(choice.methods) * len(choice.datasets), len(choice.datasets), choice.datasets),
            default=None,
        )

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
        lines = [f"missing on {dataset}: {_first(found)} ({why})" for (dataset, why), found in groups.items()]
        versions = Counter(run.facts.versions.get("om2p") or "unknown" for run in self.runs)
        if len(versions) > 1:
            made = ", ".join(f"{version} ({count} runs)" for version, count in sorted(versions.items()))
            lines.append(f"these runs were made by different versions of om2p: {made}")
        if len({run.scale for run in self.runs}) > 1:
            lines.append("runs of different scales stand beside each other")
        lines += [*(f"left out: {why}" for why in self.damaged), *self.remarks]
        alike: dict[str, list[str]] = defaultdict(list)  # data sets of the same remark
        for dataset in self.datasets:
            counted = {
                "seeds": {len(run.final) for run in self.of(dataset)},
                "updates": {run.recipe["run"]["updates"] for run in self.of(dataset)},
                "evaluation episodes": {run.episodes for run in self.of(dataset)},
            }
            unequal = [f"{name} ({_listed(counts)})" for name, counts in counted.items() if len(counts) > 1]
            if unequal:
                alike[f"methods have different numbers of {', '.join(unequal)}"].append(dataset)
        lines += [f"{', '.join(found)}: {remark}" for remark, found in alike.items()]
        joined = [f"{label} on {run.dataset}" for run, label in self._pairs() if run.joined]
        if joined:
            lines.append(f"seeds that were trained apart stand together: {_first(joined)}")
        fewest = min((len(run.final) for run in self.runs), default=0)
        if fewest == 1:
            lines.append("a run of one seed has no interval, and tells nothing apart")
        elif fewest in statistics.COVERAGE:
            lines.append(
                f"{fewest} seeds are few: the bootstrap interval of a single data set then holds the true mean about "
                f"{statistics.COVERAGE[fewest]:.0%} of the time, not 95%; one over several data sets is too narrow "
                f"as well, by a factor of {((fewest - 1) / fewest) ** 0.5:.2f}"
            )
        return lines

    def _pairs(self) -> Iterable[tuple[Run, str]]:
        return zip(self.runs, self.labels, strict=True)


def gather(places: Sequence[Path]) -> Results:
    """Read run folders, all run folders below other folders, and files of records.

    Finished runs that differ in their seeds alone become one (`pooling`).

    Args:
        places: run folders, which must be whole and finished; below any other folder, unfinished runs are reported as
            gaps, and damaged ones in the notes; files of records.

    Raises:
        UserError: a place holds no runs, a run that was named or a record is damaged or not finished, none has
            finished, two places have different runs of one folder, or runs learned from different contents of a data
            set of the same name.
    """
    every, damaged = collect(places)
    again = [folder for folder, count in Counter(run.folder.resolve() for run in every).items() if count > 1]
    if again:
        raise UserError(f"these are different runs of the same folder {again[0]}: report them apart")
    if not any(run.facts.finished for run in every):
        why = [*damaged, *(f"{run.folder} has not finished" for run in every)]
        raise UserError(f"none of these runs can be reported: {'; '.join(why)}")
    every = pool(every)
    present = {(run.dataset, label): None for run, label in zip(every, labels(every), strict=True)}  # ordered
    datasets, methods = ({pair[index]: None for pair in present} for index in (0, 1))
    absent = [Gap(data, method, "no run") for data in datasets for method in methods if (data, method) not in present]
    return assemble(every, {run.folder: "not finished" for run in every if not run.facts.finished}, absent, damaged)


def collect(places: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs of places as `gather` takes them, each once, and what could not be read.

    Raises:
        UserError: a place holds no runs, or a run that was named or a record is damaged or not finished.
    """
    found: dict[tuple[Path, str], Run] = {}  # a folder may have had an earlier run when it was recorded
    damaged: list[str] = []
    for place in places:
        if place.is_file():
            runs = records.read(place)
        elif (place / RUN_FILE).is_file():
            runs = [read(place)]
        else:
            runs = []
            for folder in _below(place):
                try:
                    runs.append(read_any(folder))
                except UserError as error:
                    damaged.append(str(error))
        for run in runs:
            found.setdefault((run.folder.resolve(), run.facts.started), run)
    return list(found.values()), damaged


def assemble(
    runs: Sequence[Run],
    unfinished: Mapping[Path, str],
    absent: Sequence[Gap] = (),
    damaged: Sequence[str] = (),
    named: Sequence[str] | None = None,
) -> Results:
    """Results of runs, those that have not finished being gaps.

    Args:
        runs: all of them; their labels tell them apart from each other, finished or not.
        unfinished: by folder, how far those are that have no result.
        absent: what else is known to be missing.
        damaged: what could not be read.
        named: their labels, if somebody has given them names.

    Raises:
        UserError: runs learned from different contents of a data set of the same name.
    """
    pairs = list(zip(runs, named or labels(runs), strict=True))
    finished = [(run, label) for run, label in pairs if run.folder not in unfinished]
    gaps = [Gap(run.dataset, label, unfinished[run.folder]) for run, label in pairs if run.folder in unfinished]
    first: dict[str, Run] = {}
    for run, _ in finished:
        other = first.setdefault(run.dataset, run)
        if run.dataset_hash != other.dataset_hash:
            raise UserError(
                f"{run.dataset} was another data set for the run in {run.folder} than for the one in {other.folder} "
                "(content hashes differ): report them apart"
            )
    own_runs, own_labels = tuple(run for run, _ in finished), tuple(label for _, label in finished)
    order = tuple(dict.fromkeys(label for _, label in pairs))
    return Results(own_runs, own_labels, (*gaps, *absent), tuple(damaged), order=order)


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
    return {"scale": run.scale} | dict(flat(parse_overrides(run.settings)))


def _differing(run: Run, rivals: Sequence[Run]) -> dict[str, Any]:
    own = dict(flat(run.recipe))
    return {
        key: own[key] for key in sorted(own) if any(dict(flat(other.recipe)).get(key) != own[key] for other in rivals)
    }


def flat(tables: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Key, as `--set` takes it, and value of all that stands in nested tables."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _below(place: Path) -> list[Path]:
    """Run folders in a folder, however deep."""
    if not place.is_dir():
        raise UserError(f"{place} does not exist")
    found = []
    for folder, inside, files in os.walk(place):
        if RUN_FILE in files:
            found.append(Path(folder))
            inside.clear()  # a run folder holds no others
        inside.sort()
    if not found:
        raise UserError(f"{place} is not a run folder and holds none: no {RUN_FILE} there or below")
    return found


def _rank(dataset: str) -> tuple[int, int]:
    """Place of one of our data sets in a listing; others come last."""
    known = parse_id(dataset)
    tiers = [tier.value for tier in Tier]
    return (
        list(TASKS).index(known.task) if known.task in TASKS else len(TASKS),
        tiers.index(known.tier) if known.tier in tiers else len(tiers),
    )


def _first(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MOST_NAMES])} and {more} more"


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))
