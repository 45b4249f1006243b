"""Which policies learned from which data, and how far their actions keep to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from om2p_data import dataset as datasets
from om2p_data.errors import UserError
from om2p_train import results, surroundings
from om2p_train.policy import load_policy
from om2p_train.run_folder import POLICIES
from om2p_train.surroundings import Coverage, Surroundings


@dataclass(frozen=True)
class Method:
    """Policies of several seeds of one method.

    Attributes:
        label: its name in tables.
        dataset: id of the data set that they learned from, and dataset_hash: of its content.
        paths: policy files, one a seed.
        seeds: of the training.
        commits: of the code that trained each seed, "" where it is not known.
    """

    label: str
    dataset: str
    dataset_hash: str
    paths: tuple[Path, ...]
    seeds: tuple[int, ...]
    commits: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """What was measured of a method: by seed, and the actions of its first seed at the anchors, [N, n, m, A]."""

    method: Method
    by_seed: tuple[Coverage, ...]
    actions: np.ndarray


@dataclass(frozen=True)
class Report:
    """All that was measured on one data set.

    Attributes:
        around: where.
        data: the data beside themselves; uniform: uniform actions; teams: the teams that made the data, asked again,
            None where they are not known.
        methods: the learned ones.
    """

    around: Surroundings
    data: Coverage
    uniform: Coverage
    teams: Coverage | None
    methods: tuple[Measured, ...]

    @property
    def dataset(self) -> str:
        return self.around.dataset.id


def find(places: Sequence[Path]) -> tuple[list[Method], list[str]]:
    """Policies of run folders, of all runs below other folders, and policy files.

    A file is a method of its own, named by its path.

    Returns:
        The methods, and what was left out, a line each.

    Raises:
        UserError: a place holds no runs, a file is no policy or does not say what it learned from.
    """
    folders = [place for place in places if not place.is_file()]
    methods, left_out = _of_runs(folders) if folders else ([], [])
    return [*methods, *(_of_file(place) for place in dict.fromkeys(places) if place.is_file())], left_out


def measure(
    methods: Sequence[Method],
    *,
    observations: int,
    neighbours: int,
    seed: int,
    root: Path | None = None,
    progress: bool = True,
) -> list[Report]:
    """Measure methods, data set by data set.

    Args:
        methods: what `find` gives.
        observations, neighbours, seed: as `surroundings.draw`.
        root: folder of data sets; by default Minari's.
        progress: whether to show a bar.

    Raises:
        UserError: a data set is missing, too small or not the one that a method learned from.
    """
    found = {name: datasets.load(name, root) for name in dict.fromkeys(method.dataset for method in methods)}
    for method in methods:
        if found[method.dataset].metadata["content_hash"] != method.dataset_hash:
            raise UserError(
                f"{method.dataset} is not what {method.paths[0]} learned from (content hashes differ: "
                f"{found[method.dataset].metadata['content_hash'][:12]}, then {method.dataset_hash[:12]})"
            )
    reports = []
    for name, dataset in found.items():
        own = [method for method in methods if method.dataset == name]
        around = surroundings.draw(dataset, observations, neighbours, seed)
        again = surroundings.of_teams(around)
        total = around.joint_actions * sum(len(method.paths) for method in own)
        with tqdm(total=total, desc=name, unit="action", unit_scale=True, disable=not progress) as bar:
            report = Report(
                around=around,
                data=surroundings.of_data(around, again),
                uniform=surroundings.measure(around, surroundings.uniform(around)),
                teams=None if again is None else surroundings.measure(around, again),
                methods=tuple(_measured(around, method, bar) for method in own),
            )
        reports.append(report)
    return reports


def _measured(around: Surroundings, method: Method, bar: tqdm) -> Measured:
    found: list[Coverage] = []
    first = np.empty(0)
    for index, path in enumerate(method.paths):
        samples = surroundings.of_policy(around, load_policy(path), bar.update)
        found.append(surroundings.measure(around, samples))
        first = first if index else samples.here
    return Measured(method, tuple(found), first)


def _of_runs(folders: Sequence[Path]) -> tuple[list[Method], list[str]]:
    found = results.gather(folders)
    named = list(zip(found.runs, found.labels, strict=True))
    methods = [
        Method(
            label=label,
            dataset=run.dataset,
            dataset_hash=run.dataset_hash,
            paths=tuple(folder / POLICIES / f"seed{seed}.safetensors" for seed, folder in run.folders.items()),
            seeds=run.facts.seeds,
            commits=run.commits,
        )
        for dataset in found.datasets
        for run, label in named
        if run.dataset == dataset
    ]
    unfinished = [f"left out: {gap}" for gap in found.gaps if gap.why == "not finished"]
    return methods, [*unfinished, *(f"left out: {why}" for why in found.damaged)]


def _of_file(path: Path) -> Method:
    card = load_policy(path).card
    if "dataset_hash" not in card:
        raise UserError(f"{path} does not say which content of {card['dataset']} it learned from: name its run folder")
    return Method(str(path), card["dataset"], card["dataset_hash"], (path,), (card["seed"],), ("",))
