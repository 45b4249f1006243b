"""The prey of Predator-Prey and World: trained once, together with three predators, then frozen.

Both sides learn with TD3 in the same worlds, the predators with the central critic of their common reward, the prey
with one of its own. A prey that trains on for long flees so well that no team catches it, and one that has just begun
is no prey at all. Between the two, uniformly random predators score less and less against it; it is frozen where they
score what they scored against the lost one of the published benchmarks.

Source: the published benchmarks' prey was trained jointly by DDPG (Lowe et al. 2017; Pan et al. 2022).
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from tqdm import tqdm

from om2p_data.behavior.config import TD3Config
from om2p_data.behavior.policy import GaussianNoise, TeamActor, UniformPolicy, between, one_torch_thread
from om2p_data.behavior.replay import Replay
from om2p_data.behavior.td3 import TD3
from om2p_data.envs.particle import SCENARIOS, NetworkPrey, ParticleEnv
from om2p_data.envs.registry import Task
from om2p_data.errors import UserError
from om2p_data.recipe import Record
from om2p_data.rollout import team_returns
from om2p_data.storage import ensure_writable, reason, write_whole

_TOLERANCE = 0.15
_BISECTIONS = 10


class PreyConfig(Record):
    """How a prey is trained (`[prey]` of a data recipe)."""

    num_envs: int = Field(gt=0)
    min_steps: int = Field(ge=0, description="environment steps before which the prey is no prey yet")
    max_steps: int = Field(gt=0, description="environment steps after which training gives up")
    segment_steps: int = Field(gt=0, description="steps of every world between two evaluations")
    evaluation_episodes: int = Field(gt=0)
    hidden: tuple[PositiveInt, PositiveInt]
    td3: TD3Config


class _Learning:
    """The prey while it learns: acts with noise and remembers what it saw and did."""

    identity = "learning"

    def __init__(self, actor: TeamActor, noise: float, rng: np.random.Generator):
        self._policy, self._rng = GaussianNoise(actor, noise), rng

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.seen, self.done = obs[:, None], self._policy.act(obs[:, None], self._rng)  # [E, 1, O], [E, 1, 2]
        return self.done[:, 0]


def train_prey(task: Task, config: PreyConfig, seed: int, path: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train a prey, freeze it, and write it to `path`.

    Args:
        task: Predator-Prey or World.
        config: the recipe.
        seed: of weights, exploration and worlds.
        path: the safetensors file.
        progress: whether to show a bar.

    Returns:
        Its card: return of random predators, steps, seconds, recipe.

    Raises:
        UserError: the task has no prey, random predators never fell to the published return, or the file cannot be
            written, which is found out first where it can be.
    """
    if not SCENARIOS[task.scenario].HAS_PREY:
        raise UserError(f"{task.name} has no prey: valid: predator-prey, world")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder, name a file")
    ensure_writable(path.parent)
    started = time.perf_counter()
    aim = task.reference_random
    before: TeamActor | None = None
    bar = tqdm(desc=f"prey {task.alias}", unit="step", unit_scale=True, disable=not progress)
    with one_torch_thread(), bar:
        for steps, actor in _segments(task, config, seed):
            bar.update(steps - bar.n)
            returns = _random_returns(task, actor, config, seed)
            bar.set_postfix_str(f"random predators {returns.mean():.1f}, aim {aim:g}")
            if steps >= config.min_steps and before is not None and returns.mean() <= aim:
                prey, returns = _land(task, before, actor, config, seed)
                break
            # Between two that are both beyond the aim there is none that lands on it: train on until it is crossed.
            before = copy.deepcopy(actor) if returns.mean() > aim else None
        else:
            raise UserError(f"random predators never fell to {aim} within prey.max_steps = {config.max_steps}")
    facts = {
        "task": task.name,
        "algorithm": "joint td3",
        "seed": seed,
        "env_steps": steps,
        "random_return_mean": float(returns.mean()),
        "random_return_std": float(returns.std()),
        "episodes": len(returns),
        "seconds": round(time.perf_counter() - started, 1),
        "recipe": config.model_dump(mode="json"),
        "om2p": metadata.version("om2p"),
        "torch": torch.__version__,
    }
    try:
        write_whole(path, lambda temporary: prey.save(temporary, facts))
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    return facts | {"identity": prey.identity}


def _segments(task: Task, config: PreyConfig, seed: int) -> Iterator[tuple[int, TeamActor]]:
    """Train both sides; yields the environment steps so far and the prey (live, not a copy) after every segment."""
    learner = config.td3
    words = [int(word) for word in np.random.SeedSequence(seed).generate_state(4)]
    rng = np.random.default_rng(words[0])
    prey_task = dataclasses.replace(task, agents=("prey",), obs_dim=SCENARIOS[task.scenario].OBS_DIMS[-1])
    team = TD3(task, seed=words[1], hidden=config.hidden, **learner.learner())
    runner = TD3(prey_task, seed=words[2], hidden=config.hidden, **learner.learner())
    prey = _Learning(runner.actor, learner.exploration_noise, rng)
    env = ParticleEnv(task, config.num_envs, words[3], prey=prey)
    memory, prey_memory = (Replay(side, config.num_envs, 2 * config.segment_steps) for side in (task, prey_task))
    uniform, explorer = UniformPolicy(task), GaussianNoise(team.actor, learner.exploration_noise)
    obs = env.reset()
    for step in range(1, config.max_steps // config.num_envs + 1):
        warming_up = step * config.num_envs <= learner.warmup_steps
        state = env.state()
        actions = (uniform if warming_up else explorer).act(obs, rng)
        next_obs, rewards, terminated, truncated = env.step(actions)
        ends = (env.final_state, terminated, truncated)
        memory.add(obs, state, actions, rewards, env.final_obs, *ends)
        prey_memory.add(prey.seen, state, prey.done, env.prey_reward[:, None], env.final_prey_obs[:, None], *ends)
        obs = next_obs
        if not warming_up and step >= learner.n_step:
            team.update(memory.sample(rng, learner.batch_size, learner.n_step, learner.gamma))
            runner.update(prey_memory.sample(rng, learner.batch_size, learner.n_step, learner.gamma))
        if step % config.segment_steps == 0:
            yield step * config.num_envs, runner.actor


def _random_returns(task: Task, actor: TeamActor, config: PreyConfig, seed: int) -> np.ndarray:
    env = ParticleEnv(task, config.evaluation_episodes, prey=_frozen(task, actor))
    return team_returns(UniformPolicy(task), env, seed)


def _land(
    task: Task, easy: TeamActor, hard: TeamActor, config: PreyConfig, seed: int
) -> tuple[NetworkPrey, np.ndarray]:
    """The prey between two segments against which random predators score what is published, and their returns."""
    near, far = 0.0, 1.0
    for _ in range(_BISECTIONS):
        actor = between(easy, hard, 0.5 * (near + far))
        returns = _random_returns(task, actor, config, seed)
        gap = returns.mean() - task.reference_random
        if abs(gap) < _TOLERANCE:
            return _frozen(task, actor), returns
        near, far = (0.5 * (near + far), far) if gap > 0 else (near, 0.5 * (near + far))
    raise UserError(
        f"no prey between two segments brings random predators to {task.reference_random}: raise "
        "prey.evaluation_episodes or take another seed"
    )


def _frozen(task: Task, actor: TeamActor) -> NetworkPrey:
    layers = [*actor.net.hidden_layers, actor.net.output_layer]
    weights = {}
    for number, layer in enumerate(layers, 1):
        weights[f"weight_{number}"] = layer.get_parameter("weight")[0].detach().numpy()
        weights[f"bias_{number}"] = layer.get_parameter("bias")[0, 0].detach().numpy()
    return NetworkPrey(weights, task.name)
