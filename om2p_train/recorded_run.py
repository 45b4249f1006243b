"""One run folder: what it says, checked, for tables and figures."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError, field_validator

from om2p_data.envs.registry import TASKS, Task
from om2p_data.errors import UserError
from om2p_data.storage import reason
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


class ToldApart(BaseModel):
    """Behaviour teams: their shares of the transitions, and whom the policy plays as."""

    shares: tuple[float, ...]
    returns: tuple[float | None, ...]
    standard_errors: tuple[float | None, ...]
    plays: int


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
    behavior_teams: ToldApart | None = None
    finished: bool

    @field_validator("behavior_teams", mode="before")
    @classmethod
    def _once(cls, value: object) -> object:
        return None if isinstance(value, list) else value  # as each seed once told them apart on its own


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
        joined: the runs whose seeds were put together in this one; empty for a run as it was trained.
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
    joined: tuple[Run, ...] = ()

    @property
    def parts(self) -> tuple[Run, ...]:
        """What was trained: the runs that were joined, or this one."""
        return self.joined or (self,)

    @property
    def folders(self) -> dict[int, Path]:
        """Where each seed was trained, in the order of the seeds."""
        return {seed: part.folder for seed, part in self._by_seed()}

    @property
    def commits(self) -> tuple[str, ...]:
        """Of the code that trained each seed; "" where that is not known."""
        return tuple(part.facts.commit or "" for _, part in self._by_seed())

    def _by_seed(self) -> list[tuple[int, Run]]:
        """What was trained with each seed, in their order."""
        found = {seed: part for part in self.parts for seed in part.facts.seeds}
        return [(seed, found[seed]) for seed in self.facts.seeds]

    @property
    def behavior_teams(self) -> int:
        """As how many teams' data the run took what it learned from: 1 where nothing was told apart."""
        return 1 if self.facts.behavior_teams is None else len(self.facts.behavior_teams.shares)

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


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: not a run folder, the run has not finished, its files are damaged, or another version wrote them.
    """
    run = read_any(folder)
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


def checked(place: str, facts: Mapping[str, Any], read: Callable[..., _T], *arguments: Any) -> _T:
    """What `read` returns; where it meets something unexpected, one line that says where that may come from.

    Args:
        place: where the run stands, for messages.
        facts: what stands there, as far as it could be read.
        read: called with `arguments`.

    Raises:
        UserError: the run is damaged, or another version wrote it.
    """
    try:
        return read(*arguments)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what, ours = f"{type(error).__name__}: {_said(error)}", metadata.version("om2p")
        versions = facts.get("versions")
        theirs = versions.get("om2p") if isinstance(versions, dict) else None
        if theirs not in (None, ours):
            raise UserError(
                f"{place} was written by om2p {theirs} and cannot be read by {ours} ({what}): report it with that "
                "version, or train it again"
            ) from error
        raise UserError(f"{place} is damaged: {what}") from error


def read_any(folder: Path) -> Run:
    """Read a run folder; of a run that has not finished, no returns.

    Raises:
        UserError: not a run folder, its files are damaged, or another version wrote them.
    """
    raw, place = _facts(folder), f"the run in {folder}"
    facts = checked(place, raw, Facts.model_validate, raw)
    return checked(place, raw, _read if facts.finished else _unfinished, folder, facts)


def with_returns(
    folder: Path, facts: Facts, updates: Sequence[int], returns: Sequence[Sequence[float]], source: str
) -> Run:
    """A finished run.

    Args:
        folder: where it lies.
        facts: what stands in run.json.
        updates: [U], when the policy was evaluated.
        returns: [U, S].
        source: where the returns stand, for messages.

    Raises:
        ValueError: returns are missing, or no numbers.
    """
    last = facts.recipe["run"]["updates"]
    playable = facts.random_return_mean is not None or updates  # it is None where nobody can play
    if playable and max(updates, default=0) != last:
        raise ValueError(f"{source} does not reach update {last}")
    if [len(row) for row in returns] != [len(facts.seeds)] * len(updates):
        raise ValueError(f"{source} lacks returns of a seed")
    found = np.array(returns)
    if not np.isfinite(found).all():
        raise ValueError(f"{source} holds a return that is no number")
    return _run(folder, facts, np.array(updates), found)


def _read(folder: Path, facts: Facts) -> Run:
    by_update: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (folder / EVALUATIONS_FILE).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            by_update[int(row["update"])][int(row["seed"])].append(float(row["return"]))
    whole = dict.fromkeys(facts.seeds, facts.recipe["run"]["evaluation_episodes"])
    for update, by_seed in by_update.items():
        if {seed: len(found) for seed, found in by_seed.items()} != whole:
            raise ValueError(f"{EVALUATIONS_FILE} lacks episodes of update {update}")
    returns = [[float(np.mean(by_seed[seed])) for seed in facts.seeds] for by_seed in by_update.values()]
    return with_returns(folder, facts, list(by_update), returns, EVALUATIONS_FILE)


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
