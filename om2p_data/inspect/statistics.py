"""A data set in figures: what it holds, what its agents do, who collected it and how much of the world they saw."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from om2p_data import metadata
from om2p_data.dataset import Dataset, datasets_root, load
from om2p_data.inspect.views import Views, look
from om2p_data.spec import TeamSpec
from om2p_data.storage import parse_id

ENTROPY_BINS = 32  # of continuous actions
_AT_BOUND = 1e-3  # of the range: so close to a bound counts as at it


@dataclass(frozen=True)
class Component:
    """One component of an agent's action, or of a discrete action one choice.

    Attributes:
        mean, std, low, high: of the values in the data; the mean of a choice is the share of steps on which it is made.
        at_bound: share of values at a bound of the action space, None for choices and where there are no bounds.
        entropy: evenness of the values, 0 (always the same) to 1 (uniform): the entropy of a histogram of 32 bins
            between the bounds (between the extremes where there are none), over its maximum. None for choices.
    """

    mean: float
    std: float
    low: float
    high: float
    at_bound: float | None
    entropy: float | None


@dataclass(frozen=True)
class AgentFigures:
    """One agent.

    Attributes:
        name: of the agent.
        return_mean, return_std: of its own undiscounted returns.
        present: share of the team's steps before the agent has ended.
        discrete: whether `actions` are choices.
        actions: by component, or by choice.
        entropy: mean over the components; of discrete actions that of the choices over its maximum.
        obs_low, obs_high: extremes over all components.
        obs_dim: components of the observation; obs_constant: how many of them never change.
    """

    name: str
    return_mean: float
    return_std: float
    present: float
    discrete: bool
    actions: tuple[Component, ...]
    entropy: float
    obs_low: float
    obs_high: float
    obs_dim: int
    obs_constant: int


@dataclass(frozen=True)
class SourceFigures:
    """One behaviour policy, and what it collected: as in `BehaviorPolicy`, and its share of the transitions."""

    name: str
    algorithm: str
    step: int
    seed: int
    hash: str
    episodes: int
    transitions: int
    share: float
    return_mean: float | None
    return_std: float | None


@dataclass(frozen=True)
class PlaneFigures:
    """How much of a plane is covered: see `Plane`."""

    name: str
    visited: float
    evenness: float
    outside: float


@dataclass(frozen=True)
class Coverage:
    """How much of the world the data show: `effective_dimension` as in `Views`, of `state_dim` components."""

    meaning: str
    sampled: int
    planes: tuple[PlaneFigures, ...]
    effective_dimension: float
    state_dim: int


@dataclass(frozen=True)
class Description:
    """All of it; plain values, ready for JSON.

    Attributes:
        id, summary, environment, tier: what the data set is called and about.
        megabytes: 10^6 bytes of all its files; hdf5_megabytes of what has to travel.
        team_return, episode_length: mean, std, min, max, quantiles.
        published: mean return of the published data of this task and tier, None where there is none.
        reference_random, reference_expert: returns that score 0 and 100, or None.
        terminated: share of the episodes that end by themselves, not by a time limit.
        content_hash: as the metadata state it, None for data sets of other people.
        collection: how the data came about, as the metadata state it.
    """

    id: str
    summary: str
    environment: str
    tier: str
    megabytes: float
    hdf5_megabytes: float
    transitions: int
    episodes: int
    terminated: float
    team_return: Mapping[str, Any]
    episode_length: Mapping[str, Any]
    published: float | None
    reference_random: float | None
    reference_expert: float | None
    agents: tuple[AgentFigures, ...]
    sources: tuple[SourceFigures, ...]
    tier_sources: tuple[Mapping[str, Any], ...]
    coverage: Coverage
    content_hash: str | None
    collection: Mapping[str, Any]
    minari_version: str | None

    def score(self, team_return: float) -> float | None:
        """The return as 0 for the random and 100 for the expert reference, None where there are no references."""
        low, high = self.reference_random, self.reference_expert
        return None if low is None or high is None or low == high else 100.0 * (team_return - low) / (high - low)


@dataclass(frozen=True, eq=False)
class Study:
    """A data set with what was found out about it."""

    data: Dataset
    views: Views
    description: Description


def study(dataset_id: str, root: str | os.PathLike[str] | None = None) -> Study:
    """Open a data set and look at it.

    Raises:
        UserError: what `dataset.load` refuses.
    """
    data = load(dataset_id, root)
    views = look(data)
    return Study(data, views, describe(data, views, datasets_root(root) / dataset_id))


def verify(one: Study) -> bool | None:
    """Whether the data have the content hash that their metadata state; None where none is stated."""
    stated = one.description.content_hash
    return None if stated is None else one.data.episodes.content_hash() == stated


def describe(data: Dataset, views: Views, folder: Path) -> Description:
    """The data set in figures.

    Args:
        data: the data set.
        views: what `views.look` saw of it.
        folder: where it lies.
    """
    episodes, card, stated = data.episodes, data.environment, data.metadata
    tier = parse_id(data.id).tier
    figures = metadata.statistics(episodes)
    sizes = {path: path.stat().st_size / 1e6 for path in folder.rglob("*") if path.is_file()}
    return Description(
        id=data.id,
        summary=card.summary,
        environment=card.name,
        tier=tier,
        megabytes=sum(sizes.values()),
        hdf5_megabytes=sum(size for path, size in sizes.items() if path.parent == folder / "data"),
        transitions=episodes.num_transitions,
        episodes=episodes.num_episodes,
        terminated=float(np.mean(episodes.team_terminated[episodes.transition_start + episodes.lengths - 1])),
        team_return=figures["team_return"],
        episode_length=figures["episode_length"],
        published=None if data.task is None else data.task.returns.of_tier(tier),
        reference_random=card.reference_random,
        reference_expert=card.reference_expert,
        agents=_agents(data),
        sources=tuple(_source(data, index) for index in range(len(data.policies))),
        tier_sources=tuple(stated.get("tier_sources", ())),
        coverage=Coverage(
            meaning=views.meaning,
            sampled=len(views.states),
            planes=tuple(PlaneFigures(p.name, p.visited, p.evenness, p.outside) for p in views.planes),
            effective_dimension=views.effective_dimension,
            state_dim=views.states.shape[1],
        ),
        content_hash=stated.get("content_hash"),
        collection=stated.get("collection", {}),
        minari_version=stated.get("minari_version"),
    )


def _agents(data: Dataset) -> tuple[AgentFigures, ...]:
    episodes, spec = data.episodes, data.environment.spec
    returns = np.add.reduceat(episodes.rewards, episodes.transition_start, dtype=np.float64)  # [E, N]
    # Most teams end together; only where one agent leaves earlier are its rows picked out.
    absent = None if episodes.agents_end_together else episodes.absent
    found = []
    for index, name in enumerate(spec.agents):
        obs = episodes.obs[:, index, : spec.obs_dims[index]]
        actions = episodes.actions[:, index, : spec.act_dims[index]]
        present = 1.0
        if absent is not None:
            here = ~absent[:, index]
            present, actions = float(here.mean()), actions[here]
            # What an agent saw first, and what each of its steps led to.
            obs = obs[np.concatenate((episodes.episode_start, episodes.obs_index[here] + 1))]
        components, entropy = _actions(spec, index, actions)
        low, high = obs.min(axis=0), obs.max(axis=0)
        found.append(
            AgentFigures(
                name=name,
                return_mean=float(returns[:, index].mean()),
                return_std=float(returns[:, index].std()),
                present=present,
                discrete=spec.discrete[index],
                actions=components,
                entropy=entropy,
                obs_low=float(low.min()),
                obs_high=float(high.max()),
                obs_dim=spec.obs_dims[index],
                obs_constant=int(np.count_nonzero(low == high)),
            )
        )
    return tuple(found)


def _actions(spec: TeamSpec, index: int, actions: np.ndarray) -> tuple[tuple[Component, ...], float]:
    """The components [T, A] of an agent's actions, and their entropy."""
    means, deviations = actions.mean(axis=0, dtype=np.float64), actions.std(axis=0, dtype=np.float64)
    lows, highs = actions.min(axis=0), actions.max(axis=0)
    bounds = action_bounds(spec, index)
    components = []
    for a in range(actions.shape[1]):
        at_bound = entropy = None
        if not spec.discrete[index]:
            low, high = bounds[0][a], bounds[1][a]
            bounded = bool(np.isfinite(low) and np.isfinite(high))
            if bounded:
                margin = _AT_BOUND * (high - low)
                values = actions[:, a]
                at_bound = float(np.mean((values <= low + margin) | (values >= high - margin)))
            span = (low, high) if bounded else (float(lows[a]), float(highs[a]))
            counts = np.histogram(np.clip(actions[:, a], *span), bins=ENTROPY_BINS, range=span)[0]
            entropy = _entropy(counts / counts.sum())
        components.append(
            Component(float(means[a]), float(deviations[a]), float(lows[a]), float(highs[a]), at_bound, entropy)
        )
    if spec.discrete[index]:
        return tuple(components), _entropy(means)
    return tuple(components), float(np.mean([component.entropy for component in components]))


def action_bounds(spec: TeamSpec, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of each component of an agent's action, each [A]."""
    size = spec.act_dims[index]
    low = np.full(size, -1.0) if spec.action_low is None else np.array(spec.action_low[index])
    high = np.full(size, 1.0) if spec.action_high is None else np.array(spec.action_high[index])
    return low, high


def _entropy(shares: np.ndarray) -> float:
    """Entropy of shares that sum to 1, over that of equal shares."""
    if len(shares) == 1:
        return 0.0
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum() / np.log(len(shares))) + 0.0  # no -0.0


def _source(data: Dataset, index: int) -> SourceFigures:
    episodes, policy = data.episodes, data.policies[index]
    own = episodes.policy == index
    returns, transitions = episodes.team_returns[own], int(episodes.lengths[own].sum())
    return SourceFigures(
        name=policy.name,
        algorithm=policy.algorithm,
        step=policy.step,
        seed=policy.seed,
        hash=policy.hash,
        episodes=int(own.sum()),
        transitions=transitions,
        share=transitions / episodes.num_transitions,
        return_mean=float(returns.mean()) if returns.size else None,
        return_std=float(returns.std()) if returns.size else None,
    )
