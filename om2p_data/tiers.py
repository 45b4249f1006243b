"""What the tiers of a data set mean, and how each is collected.

| tier | what it holds |
|---|---|
| random | uniform actions |
| medium-replay | everything that behaviour training had collected when its policy reached the medium level |
| medium | the policy that landed within 5% of the medium level, with Gaussian action noise |
| medium-expert | whole medium and expert episodes; a share of the transitions (the task's `expert_share`) is expert's |
| expert | the policy that landed at or up to 15% above the expert level, with Gaussian action noise |

Medium and expert teams ship with the package; they are taken unless the recipe says otherwise or a fresh one is asked
for. The replay memory of medium-replay is no policy, so it is always trained.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from tqdm import tqdm

from om2p_data import recipe
from om2p_data.behavior import training
from om2p_data.behavior.config import EXPERT, LEVELS, MEDIUM, BehaviorConfig
from om2p_data.behavior.policy import Policy, UniformPolicy, one_torch_thread, with_noise
from om2p_data.behavior.prey import PreyConfig
from om2p_data.behavior.training import Milestone
from om2p_data.dataset import BehaviorPolicy
from om2p_data.envs import make
from om2p_data.envs.registry import Task
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError, unknown
from om2p_data.recording import EpisodeBuffer
from om2p_data.rollout import enough, rollout

DEFAULT_TRANSITIONS = 1_000_000


class Tier(enum.Enum):
    """Name of a tier, as it stands in data set ids."""

    RANDOM = "random"
    MEDIUM_REPLAY = "medium-replay"
    MEDIUM = "medium"
    MEDIUM_EXPERT = "medium-expert"
    EXPERT = "expert"

    @classmethod
    def parse(cls, name: str) -> Tier:
        """The tier of that name.

        Raises:
            UserError: no such tier.
        """
        try:
            return cls(name.lower())
        except ValueError:
            raise unknown("tier", name, [tier.value for tier in cls]) from None


class CollectionConfig(recipe.Record):
    """How a policy is rolled out."""

    num_envs: int = Field(gt=0)


class DataRecipe(recipe.Record):
    """All of a task's data recipe (recipes/data/<task>.toml)."""

    behavior: BehaviorConfig
    collection: CollectionConfig
    prey: PreyConfig | None = None


@dataclass(frozen=True)
class Collected:
    """Episodes of one tier, the policies that made them (`episodes.policy` indexes the list), and the trained teams."""

    episodes: Episodes
    policies: list[BehaviorPolicy]
    teams: list[Milestone]


def load_recipe(task: Task, source: str | None, settings: Mapping | None = None) -> DataRecipe:
    """The task's bundled recipe, or the file `source`, with `settings` on top."""
    tables, label = recipe.read(source or task.name, "data")
    return recipe.fill(DataRecipe, recipe.merge(tables, settings or {}), label)


def collect(
    task: Task,
    tier: Tier,
    config: DataRecipe,
    *,
    transitions: int | None = None,
    expert_share: float | None = None,
    seed: int = 0,
    fresh: bool = False,
    progress: bool = True,
) -> Collected:
    """Whole episodes of a tier.

    Args:
        task: row of the task table.
        tier: which tier.
        config: how behaviour teams are trained and rolled out.
        transitions: how many are wanted; the last episode is completed. By default a million, or all that there are
            for medium-replay. Fewer than all of medium-replay are taken evenly over the course of training.
        expert_share: share of expert transitions in medium-expert, in [0, 1]; by default the task's.
        seed: of the rollout, and of behaviour training where there is one.
        fresh: train the behaviour team anew instead of taking the one that ships with the package.
        progress: whether to show bars.

    Raises:
        UserError: a share outside [0, 1] or given for another tier, no or too many transitions, or a behaviour level
            that training does not reach.
    """
    if transitions is not None and transitions < 1:
        raise UserError(f"transitions must be 1 or more, not {transitions}")
    if expert_share is not None and tier is not Tier.MEDIUM_EXPERT:
        raise UserError(f"an expert share only makes sense for tier medium-expert, not for {tier.value}")
    collector = _Collector(task, config, seed, fresh, progress)
    if tier is Tier.MEDIUM_REPLAY:
        return collector.replay(transitions)
    wanted = transitions or DEFAULT_TRANSITIONS
    if tier is Tier.RANDOM:
        return collector.random(wanted)
    if tier is not Tier.MEDIUM_EXPERT:
        return collector.levels({EXPERT if tier is Tier.EXPERT else MEDIUM: wanted})
    share = task.expert_share if expert_share is None else expert_share
    if not 0.0 <= share <= 1.0:
        raise UserError(f"the expert share must lie in [0, 1], not {share}")
    expert = round(wanted * share)
    return collector.levels({MEDIUM: wanted - expert, EXPERT: expert})


class _Collector:
    """Collects the parts of a tier with one recipe and seed."""

    def __init__(self, task: Task, config: DataRecipe, seed: int, fresh: bool, progress: bool):
        self._task, self._config, self._seed, self._fresh, self._progress = task, config, seed, fresh, progress
        # Parts of one data set are played in worlds of their own: the expert does not replay the medium's starts.
        seeds = np.random.SeedSequence(seed).generate_state(3)
        names: tuple[str, ...] = ("random", MEDIUM, EXPERT)
        self._rollout_seed = {name: int(word) for name, word in zip(names, seeds, strict=True)}

    def random(self, transitions: int) -> Collected:
        episodes = self._play("random", UniformPolicy(self._task), transitions, EpisodeBuffer(transitions))
        return Collected(episodes, [_described("random", "uniform", 0, self._seed, "", episodes.team_returns)], [])

    def levels(self, wanted: dict[str, int]) -> Collected:
        """Episodes of one or more levels, by the transitions wanted of each."""
        wanted = {level: count for level, count in wanted.items() if count > 0}
        # Expert training passes the medium level on its way, so asking for it first trains once, not twice.
        teams = {level: self._milestone(level) for level in sorted(wanted, key=LEVELS.index, reverse=True)}
        buffer = EpisodeBuffer(sum(wanted.values()))
        for index, (level, count) in enumerate(wanted.items()):
            policy = with_noise(teams[level].actor, self._task, self._config.behavior.collection_noise)
            self._play(level, policy, count, buffer, index)
        episodes = buffer.episodes()
        returns = [episodes.team_returns[episodes.policy == index] for index in range(len(wanted))]
        policies = [_from_milestone(teams[level], part) for level, part in zip(wanted, returns, strict=True)]
        return Collected(episodes, policies, [teams[level] for level in wanted])

    def replay(self, transitions: int | None) -> Collected:
        episodes, milestone = training.obtain_replay(
            self._task, self._config.behavior, self._seed, progress=self._progress
        )
        if transitions is not None:
            if transitions > episodes.num_transitions:
                raise UserError(
                    f"medium-replay of {self._task.name} holds {episodes.num_transitions} transitions, fewer than the "
                    f"{transitions} asked for: leave --transitions out to take all"
                )
            count = enough(episodes.lengths, transitions)
            episodes = episodes.select(np.linspace(0, episodes.num_episodes - 1, count).round().astype(np.int64))
        return Collected(episodes, [_from_milestone(milestone, episodes.team_returns, name="replay")], [milestone])

    def _milestone(self, level: str) -> Milestone:
        return training.obtain(
            self._task, level, self._config.behavior, self._seed, fresh=self._fresh, progress=self._progress
        )

    def _play(
        self, name: str, policy: Policy, transitions: int, buffer: EpisodeBuffer, policy_index: int = 0
    ) -> Episodes:
        # A small request is not worth more worlds than it has episodes.
        num_envs = min(self._config.collection.num_envs, -(-transitions // self._task.horizon))
        env = make(self._task.name, num_envs)
        bar = tqdm(total=transitions, desc=f"rollout {name}", unit="step", unit_scale=True, disable=not self._progress)
        with one_torch_thread(), bar:
            update: Callable[[int], object] = bar.update
            seed = self._rollout_seed[name]
            return rollout(policy, env, transitions, seed, into=buffer, policy_index=policy_index, progress=update)


def _from_milestone(milestone: Milestone, returns: np.ndarray, name: str | None = None) -> BehaviorPolicy:
    card = milestone.card
    return _described(name or milestone.level, card["algorithm"], card["updates"], card["seed"], card["hash"], returns)


def _described(name: str, algorithm: str, step: int, seed: int, digest: str, returns: np.ndarray) -> BehaviorPolicy:
    return BehaviorPolicy(
        name=name,
        algorithm=algorithm,
        step=step,
        seed=seed,
        hash=digest,
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        episodes=len(returns),
    )
