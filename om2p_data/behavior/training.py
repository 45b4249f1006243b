"""The online training loop: collect, learn, evaluate, and keep what crosses a level.

A run leaves a folder with one policy file a level, everything that had been collected when the medium level was
crossed (that is the medium-replay data), and a log. `obtain` finds such a folder or trains it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, PositiveInt
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from om2p_data.behavior.policy import GaussianNoise, TeamActor, UniformPolicy, load_actor
from om2p_data.behavior.replay import Replay
from om2p_data.behavior.td3 import TD3
from om2p_data.envs import make
from om2p_data.envs.registry import Task
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.recipe import Record
from om2p_data.rollout import team_returns

MEDIUM, EXPERT = "medium", "expert"
_REPLAY_FILE = "medium-replay.safetensors"


class Levels(Record):
    """Team returns (with collection noise) at which the policy is kept."""

    medium: float
    expert: float


class BehaviorConfig(Record):
    """How a behaviour team is trained online. One environment step is one step of every world."""

    num_envs: int = Field(gt=0)
    max_steps: int = Field(gt=0, description="environment steps, summed over worlds, after which training gives up")
    warmup_steps: int = Field(ge=0, description="environment steps of uniform actions before learning starts")
    updates_per_step: float = Field(gt=0, description="updates per step of all worlds")
    replay_size: int = Field(gt=0, description="transitions kept")
    hidden: tuple[PositiveInt, ...]
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0)
    gamma: float = Field(gt=0, lt=1)
    n_step: int = Field(gt=0)
    tau: float = Field(gt=0, le=1)
    policy_delay: int = Field(gt=0)
    smoothing: float = Field(ge=0)
    smoothing_clip: float = Field(ge=0)
    saturation_cost: float = Field(ge=0)
    reward_scale: float = Field(gt=0)
    exploration_noise: float = Field(ge=0)
    collection_noise: float = Field(ge=0, description="noise of the collecting policy, on which levels are judged")
    evaluate_every: int = Field(gt=0, description="updates between evaluations")
    evaluation_episodes: int = Field(gt=0)
    levels: Levels

    @property
    def replay_steps(self) -> int:
        """Steps kept of every world."""
        return -(-self.replay_size // self.num_envs)

    def fingerprint(self) -> str:
        """Twelve hex digits that change with any setting."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Milestone:
    """A policy that was kept, and what it scored when it crossed its level."""

    level: str
    actor: TeamActor
    card: dict


def home() -> Path:
    """Where behaviour runs are kept: OM2P_HOME, or ~/.om2p."""
    return Path(os.environ.get("OM2P_HOME", "~/.om2p")).expanduser()


def run_folder(task: Task, config: BehaviorConfig, seed: int) -> Path:
    """The folder of the run with this recipe and seed."""
    return home() / "behavior" / task.name / f"{config.fingerprint()}-seed{seed}"


def obtain(task: Task, level: str, config: BehaviorConfig, seed: int, *, progress: bool = True) -> Milestone:
    """The policy of a level: from its run's folder if it is there, else trained now.

    Raises:
        UserError: training did not reach the level, or the folder cannot be written.
    """
    folder = run_folder(task, config, seed)
    path = folder / f"{level}.safetensors"
    if not path.exists():
        train(task, config, seed, until=level, progress=progress)
    actor, card = load_actor(path, task)
    return Milestone(level, actor, card)


def obtain_replay(
    task: Task, config: BehaviorConfig, seed: int, *, progress: bool = True
) -> tuple[Episodes, Milestone]:
    """Everything that was collected until the medium level, and the policy that crossed it."""
    milestone = obtain(task, MEDIUM, config, seed, progress=progress)
    path = run_folder(task, config, seed) / _REPLAY_FILE
    try:
        return Episodes.from_arrays(load_file(path)), milestone
    except Exception as error:
        raise UserError(f"cannot read the replay memory {path}: {error}; delete its folder to train anew") from error


def train(task: Task, config: BehaviorConfig, seed: int, *, until: str = EXPERT, progress: bool = True) -> Path:
    """Train a team online until a level is crossed.

    Args:
        task: row of the task table.
        config: the recipe.
        seed: of weights, exploration and worlds.
        until: MEDIUM or EXPERT; levels on the way are kept too.
        progress: whether to show a bar.

    Returns:
        The run's folder.

    Raises:
        UserError: `max_steps` went by below the level, the memory is too small, or the folder cannot be written.
    """
    if config.replay_steps < max(2 * task.horizon, config.n_step):
        needed = config.num_envs * max(2 * task.horizon, config.n_step)
        raise UserError(
            f"behavior.replay_size = {config.replay_size} is too small for {config.num_envs} worlds of {task.name}: "
            f"two episodes of {task.horizon} steps in each, and behavior.n_step, take {needed}"
        )
    folder = run_folder(task, config, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write behaviour policies to {folder}: {error.strerror}") from error
    with _one_torch_thread():
        evaluations = _until(until, folder, _Run(task, config, seed), progress)
    with (folder / f"{until}-log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, evaluations[0].keys())
        writer.writeheader()
        writer.writerows(evaluations)
    return folder


def _until(until: str, folder: Path, run: _Run, progress: bool) -> list[dict]:
    """Train until a level is crossed, keep the policies of it and of those on the way, and return the evaluations."""
    task, config = run.task, run.config
    pending = [level for level in (MEDIUM, EXPERT) if level == until or until == EXPERT]
    evaluations: list[dict] = []
    started = time.perf_counter()
    with tqdm(
        desc=f"behaviour {task.alias}",
        unit="step",
        unit_scale=True,
        disable=not progress,
        leave=True,
    ) as bar:
        while pending:
            if run.env_steps >= config.max_steps:
                best = max(row["return_mean"] for row in evaluations) if evaluations else float("nan")
                raise UserError(
                    f"behaviour training of {task.name} stopped at {run.env_steps} environment steps with a best "
                    f"return of {best:.1f}, below the {pending[0]} level {getattr(config.levels, pending[0])}: "
                    f"raise behavior.max_steps or lower behavior.levels.{pending[0]} in the data recipe"
                )
            run.advance(config.evaluate_every)
            returns = run.evaluate()
            row = {
                "env_steps": run.env_steps,
                "updates": run.learner.updates,
                "seconds": round(time.perf_counter() - started, 2),
                "return_mean": float(returns.mean()),
                "return_std": float(returns.std()),
            }
            evaluations.append(row)
            # Before the first episodes have ended there is nothing to keep beside the policy.
            ended = run.replay.steps >= task.horizon
            while ended and pending and row["return_mean"] >= getattr(config.levels, pending[0]):
                _keep(folder, pending.pop(0), run, row)
            bar.update(run.env_steps - bar.n)
            goal = f"{pending[0]} at {getattr(config.levels, pending[0]):g}" if pending else "done"
            bar.set_postfix_str(f"return {row['return_mean']:.1f}, {goal}")
    return evaluations


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Networks of this size train a third faster on one thread than on two, and leave the other core to the worlds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """Worlds, memory and learner of one training run."""

    def __init__(self, task: Task, config: BehaviorConfig, seed: int):
        seeds = [int(word) for word in np.random.SeedSequence(seed).generate_state(5)]
        world_seed, replay_seed, learner_seed, noise_seed, self._evaluation_seed = seeds
        self.task, self.config, self.seed = task, config, seed
        self.learner = TD3(
            task,
            hidden=config.hidden,
            learning_rate=config.learning_rate,
            tau=config.tau,
            policy_delay=config.policy_delay,
            smoothing=config.smoothing,
            smoothing_clip=config.smoothing_clip,
            saturation_cost=config.saturation_cost,
            reward_scale=config.reward_scale,
            seed=learner_seed,
        )
        self.replay = Replay(task, config.num_envs, config.replay_steps, replay_seed)
        self._env = make(task.name, config.num_envs, world_seed)
        self._evaluation_env = make(task.name, config.evaluation_episodes)
        self._rng = np.random.default_rng(noise_seed)
        self._uniform = UniformPolicy(task)
        self._explorer = GaussianNoise(self.learner.actor, config.exploration_noise)
        self._obs = self._env.reset()
        self._due = 0.0
        self.env_steps = 0

    def advance(self, updates: int) -> None:
        """Collect and learn until `updates` more updates are done."""
        config = self.config
        target = self.learner.updates + updates
        while self.learner.updates < target:
            warming_up = self.env_steps < config.warmup_steps
            self._collect(self._uniform if warming_up else self._explorer)
            if warming_up or len(self.replay) < config.n_step:
                continue
            self._due += config.updates_per_step
            while self._due >= 1.0:
                self._due -= 1.0
                self.learner.update(self.replay.sample(config.batch_size, config.n_step, config.gamma))

    def _collect(self, policy: UniformPolicy | GaussianNoise) -> None:
        state = self._env.state()
        actions = policy.act(self._obs, self._rng)
        next_obs, rewards, terminated, truncated = self._env.step(actions)
        self.replay.add(
            self._obs, state, actions, rewards, self._env.final_obs, self._env.final_state, terminated, truncated
        )
        self._obs = next_obs
        self.env_steps += self.config.num_envs

    def evaluate(self) -> np.ndarray:
        """Returns [episodes] of the collecting policy, on the same starts every time."""
        policy = GaussianNoise(self.learner.actor, self.config.collection_noise)
        return team_returns(policy, self._evaluation_env, self._evaluation_seed)


def _keep(folder: Path, level: str, run: _Run, row: dict) -> None:
    """Write a level's policy (and, at the medium level, the memory) unless an earlier run already has."""
    if level == MEDIUM and not (folder / _REPLAY_FILE).exists():
        arrays = run.replay.episodes(run.seed).arrays()
        _replace(folder / _REPLAY_FILE, lambda path: save_file(arrays, path))
    path = folder / f"{level}.safetensors"
    if not path.exists():
        facts = {
            "level": level,
            "algorithm": "matd3",
            "seed": run.seed,
            "collection_noise": run.config.collection_noise,
            "episodes": run.config.evaluation_episodes,
            "recipe": run.config.model_dump(mode="json"),
            "torch": torch.__version__,
            **row,
        }
        _replace(path, lambda temporary: run.learner.actor.save(temporary, run.task, facts))


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside `path`, then rename: a half-written file never bears the final name."""
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    temporary.replace(path)
