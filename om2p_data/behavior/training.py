"""The online training loop: segments of collecting and learning, and the policies that land on a level.

A run leaves a folder with one policy file a level, everything that had been collected when the medium level was
reached (that is the medium-replay data), and a log. While it lasts there is also a checkpoint, from which the same call
goes on after an interruption and does what it would have done without one. `obtain` takes a team that ships with the
package, or such a folder, or trains.
"""

from __future__ import annotations

import copy
import csv
import os
import time
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from om2p_data import checkpoints
from om2p_data.behavior import runs
from om2p_data.behavior.config import EXPERT, LEVELS, MEDIUM, BehaviorConfig
from om2p_data.behavior.policy import TeamActor, between, load_actor, one_torch_thread, with_noise
from om2p_data.behavior.replay import Replay
from om2p_data.envs import make
from om2p_data.envs.registry import Task
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.rollout import team_returns
from om2p_data.storage import locked, write_whole

_CHECKPOINT = "checkpoint.safetensors"
_COLLECTED = "collected"
_SECONDS_BETWEEN_CHECKPOINTS = 10.0
_BISECTIONS = 8


@dataclass(frozen=True)
class Milestone:
    """A policy that landed on a level.

    Attributes:
        card: how it was trained and what it scored.
        origin: "bundled with om2p", or the folder of the run that trained it.
    """

    level: str
    actor: TeamActor
    card: dict[str, Any]
    origin: str


def home() -> Path:
    """Where behaviour runs are kept: OM2P_HOME, or ~/.om2p."""
    return Path(os.environ.get("OM2P_HOME", "~/.om2p")).expanduser()


def run_folder(task: Task, config: BehaviorConfig, seed: int) -> Path:
    """The folder of the run with this recipe and seed."""
    fingerprint = config.fingerprint(task, make(task.name).prey_identity)
    return home() / "behavior" / task.name / f"{fingerprint}-seed{seed}"


def bundled(task: Task, level: str, config: BehaviorConfig) -> Milestone | None:
    """The team of a level that ships with the package, if it is what this recipe makes."""
    found = shipped(task, level)
    if found is None or found.card["fingerprint"] != config.fingerprint(task, make(task.name).prey_identity):
        return None
    return found


def shipped(task: Task, level: str) -> Milestone | None:
    """The team of a level that ships with the package, whatever recipe made it."""
    file = resources.files("om2p_data.behavior").joinpath("teams", task.name, f"{level}.safetensors")
    if not file.is_file():
        return None
    with resources.as_file(file) as path:
        actor, card = load_actor(path, task)
    return Milestone(level, actor, card, "bundled with om2p")


def obtain(
    task: Task, level: str, config: BehaviorConfig, seed: int, *, fresh: bool = False, progress: bool = True
) -> Milestone:
    """The policy of a level: bundled, or from its run's folder if it is there, else trained now.

    Args:
        task: row of the task table.
        level: MEDIUM or EXPERT.
        config: the recipe.
        seed: of the training, where there is one.
        fresh: do not take the bundled team.
        progress: whether to show a bar.

    Raises:
        UserError: training did not reach the level, or the folder cannot be written.
    """
    found = None if fresh else bundled(task, level, config)
    if found is not None:
        return found
    folder = run_folder(task, config, seed)
    path = folder / f"{level}.safetensors"
    if not path.exists():
        train(task, config, seed, until=level, progress=progress)
    actor, card = load_actor(path, task)
    return Milestone(level, actor, card, str(folder))


def obtain_replay(
    task: Task, config: BehaviorConfig, seed: int, *, progress: bool = True
) -> tuple[Episodes, Milestone]:
    """Everything that was collected until the medium level, and the policy that reached it. Always trained."""
    milestone = obtain(task, MEDIUM, config, seed, fresh=True, progress=progress)
    path = run_folder(task, config, seed) / _COLLECTED
    try:
        steps = milestone.card["collected_steps"]
        memory = Replay(task, config.num_envs, steps)
        memory.restore(path, steps)
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"cannot read the replay memory {path}: {error}; delete {path.parent} to train anew") from error
    return memory.episodes(seed), milestone


def train(task: Task, config: BehaviorConfig, seed: int, *, until: str = EXPERT, progress: bool = True) -> Path:
    """Train a team online until a level is reached, going on from where an earlier call stopped.

    Args:
        task: row of the task table.
        config: the recipe.
        seed: of weights, exploration and worlds.
        until: MEDIUM or EXPERT; the medium team is kept on the way to the expert.
        progress: whether to show a bar.

    Returns:
        The run's folder.

    Raises:
        UserError: `max_steps` went by below the level, another process is training the same run, or the folder cannot
            be written.
    """
    folder = run_folder(task, config, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=False), one_torch_thread():
            _Training(task, config, seed, folder).run(until, progress)
    except BlockingIOError as error:
        raise UserError(f"another process is training {task.name} in {folder}: wait for it") from error
    except OSError as error:
        raise UserError(f"cannot write behaviour policies to {folder}: {error.strerror or error}") from error
    return folder


class _Training:
    """One run with its folder: evaluates after every segment, keeps what lands on a level, saves on the way."""

    def __init__(self, task: Task, config: BehaviorConfig, seed: int, folder: Path):
        self._task, self._config, self._seed, self._folder = task, config, seed, folder
        words = np.random.SeedSequence(seed).spawn(1)[0].generate_state(2)
        self._evaluation_seed, self._judging_seed = (int(word) for word in words)
        self._run = runs.start(task, config, seed)
        self._worlds = {
            count: make(task.name, count) for count in {config.evaluation_episodes, config.judging_episodes}
        }
        self._log: list[dict[str, float]] = []
        self._below: TeamActor | None = None  # the last policy that was not good enough for the next level
        self._landed: list[str] = []  # a level may have been kept after the checkpoint: it is then reached once more
        self._before = 0.0  # seconds of earlier calls
        self._started = self._saved_at = time.perf_counter()
        if (folder / _CHECKPOINT).exists():
            self._restore(checkpoints.load(folder / _CHECKPOINT))

    def run(self, until: str, progress: bool) -> None:
        config, run = self._config, self._run
        levels = LEVELS[: LEVELS.index(until) + 1]
        if all(self._path(level).exists() for level in levels):
            return
        pending = [level for level in levels if not self._has(level)]
        if not run.learns_from_memory and MEDIUM not in pending:
            run.memory = None
        with self._bar(progress) as bar:
            while pending:
                if run.env_steps >= config.max_steps:
                    self._save()
                    raise UserError(self._gave_up(pending[0]))
                run.advance()
                returns = self._evaluate(run.actor, config.evaluation_episodes)
                self._note(returns)
                while pending and self._lands(pending[0], run.actor, returns):
                    self._landed.append(pending.pop(0))
                    if MEDIUM in self._landed and not run.learns_from_memory:
                        run.memory = None
                if pending and float(returns.mean()) < config.levels.window(pending[0])[0]:
                    self._below = copy.deepcopy(run.actor)
                if time.perf_counter() - self._saved_at > _SECONDS_BETWEEN_CHECKPOINTS:
                    self._save()
                bar.update(run.env_steps - bar.n)
                goal = f"{pending[0]} at {getattr(config.levels, pending[0]):g}" if pending else "done"
                bar.set_postfix_str(f"return {returns.mean():.1f}, {goal}")
        if until == EXPERT:
            self._finish()
        else:
            self._save()

    def _bar(self, progress: bool) -> tqdm:
        label, done = f"behaviour {self._task.alias}", self._run.env_steps
        return tqdm(desc=label, initial=done, unit="step", unit_scale=True, disable=not progress)

    def _lands(self, level: str, actor: TeamActor, returns: np.ndarray) -> bool:
        """Whether the policy, or one between it and the last that was below the level, lands on it; if so, keep it.

        Returns change by leaps between two segments. Along the line between the two policies they change continuously,
        so somewhere on it lies the level.
        """
        low, high = self._config.levels.window(level)
        if returns.mean() < low:
            return False
        # Aimed at the middle of the window, so that fresh episodes fall into it too.
        inner_low, inner_high = low + 0.15 * (high - low), high - 0.15 * (high - low)
        near, far = 0.0, 1.0
        share, mean = 1.0, float(returns.mean())
        for _ in range(_BISECTIONS):
            candidate = (between(self._below, actor, share) if self._below is not None else actor).rounded()
            if share < 1.0:
                mean = float(self._evaluate(candidate, self._config.evaluation_episodes).mean())
            if inner_low <= mean <= inner_high:
                judged = self._evaluate(candidate, self._config.judging_episodes, judging=True)
                if low <= judged.mean() <= high:
                    self._keep(level, candidate, judged, share)
                    return True
            if self._below is None or (share == 1.0 and mean < inner_low):
                return False
            near, far = (share, far) if mean < 0.5 * (low + high) else (near, share)
            share = 0.5 * (near + far)
        return False

    def _keep(self, level: str, actor: TeamActor, returns: np.ndarray, share: float) -> None:
        run, config = self._run, self._config
        facts = {
            "level": level,
            "algorithm": config.algorithm,
            "seed": self._seed,
            "collection_noise": config.collection_noise,
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "episodes": len(returns),
            "env_steps": run.env_steps,
            "updates": run.learner.updates,
            "seconds": round(self._seconds(), 1),
            "line_share": share,
            "prey": make(self._task.name).prey_identity,
            "fingerprint": config.fingerprint(self._task, make(self._task.name).prey_identity),
            "recipe": config.model_dump(mode="json", exclude_none=True),
            "om2p": metadata.version("om2p"),
            "torch": torch.__version__,
        }
        if level == MEDIUM:
            assert run.memory is not None
            run.memory.save(self._folder / _COLLECTED)
            facts["collected_steps"] = run.memory.steps
        write_whole(self._path(level), lambda path: actor.save(path, self._task, facts))

    def _evaluate(self, actor: TeamActor, episodes: int, *, judging: bool = False) -> np.ndarray:
        """Returns [episodes] of the collecting policy, on the same starts every time (judging: on others)."""
        policy = with_noise(actor, self._task, self._config.collection_noise)
        return team_returns(policy, self._worlds[episodes], self._judging_seed if judging else self._evaluation_seed)

    def _note(self, returns: np.ndarray) -> None:
        self._log.append(
            {
                "env_steps": self._run.env_steps,
                "updates": self._run.learner.updates,
                "seconds": round(self._seconds(), 2),
                "return_mean": float(returns.mean()),
                "return_std": float(returns.std()),
            }
        )

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def _save(self) -> None:
        run = self._run
        if run.memory is not None:
            run.memory.save(self._folder / _COLLECTED)
        state = {
            "run": run.state(),
            "landed": self._landed,
            "log": self._log,
            "below": None if self._below is None else self._below.state_dict(),
            "seconds": self._seconds(),
        }
        checkpoints.save(self._folder / _CHECKPOINT, state)
        self._saved_at = time.perf_counter()

    def _restore(self, state: dict[str, Any]) -> None:
        run = self._run
        try:
            self._landed = state["landed"]
            if run.memory is not None and (run.learns_from_memory or not self._has(MEDIUM)):
                run.memory.restore(self._folder / _COLLECTED, state["run"]["segments"] * self._config.segment_steps)
            run.restore(state["run"])
            self._log, self._before = state["log"], state["seconds"]
            if state["below"] is not None:
                self._below = copy.deepcopy(run.actor)
                self._below.load_state_dict(state["below"])
        except (OSError, ValueError, LookupError, RuntimeError) as error:  # damaged, or of another version
            raise UserError(f"cannot go on in {self._folder}: {error}; delete it to train anew") from error

    def _finish(self) -> None:
        """Leave what others read: the policies, what was collected until the medium level, and the log."""
        with (self._folder / "log.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, self._log[0].keys())
            writer.writeheader()
            writer.writerows(self._log)
        (self._folder / _CHECKPOINT).unlink(missing_ok=True)
        steps = load_actor(self._path(MEDIUM), self._task)[1]["collected_steps"]
        Replay(self._task, self._config.num_envs, 1).cut_files(self._folder / _COLLECTED, steps)

    def _gave_up(self, level: str) -> str:
        best = max(row["return_mean"] for row in self._log) if self._log else float("nan")
        low, high = self._config.levels.window(level)
        return (
            f"behaviour training of {self._task.name} stopped at {self._run.env_steps} environment steps with a best "
            f"return of {best:.1f}; the {level} level is {low:.1f} to {high:.1f}: raise behavior.max_steps (training "
            f"goes on where it stopped) or change behavior.levels.{level} in the data recipe"
        )

    def _has(self, level: str) -> bool:
        return level in self._landed and self._path(level).exists()

    def _path(self, level: str) -> Path:
        return self._folder / f"{level}.safetensors"
