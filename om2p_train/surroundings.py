"""Observations of a data set, with what the data, the teams that made them and learned policies do there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from om2p_data.behavior.config import LEVELS
from om2p_data.behavior.policy import TeamActor, one_torch_thread, with_noise
from om2p_data.behavior.training import shipped
from om2p_data.dataset import Dataset
from om2p_data.errors import UserError
from om2p_data.spec import TeamSpec
from om2p_train import coverage
from om2p_train.policy import TeamPolicy
from om2p_train.spaces import to_unit
from om2p_train.streams import EVALUATION, SeedStreams

SAMPLES = 32  # m, of a policy at one observation
_BATCH = 1_024  # joint actions at a time: a diffusion takes many candidates for each
_DRAW, _UNIFORM, _TEAMS = range(3)  # random streams of their own

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Modes:
    """What becomes of the modes of the data, at the observations that tell them apart.

    Attributes:
        shares: of the actions that lie near each team's; elsewhere: of those that lie near none.
        kept: mean number of modes that are kept; of the data, how many there are.
    """

    shares: tuple[float, ...]
    elsewhere: float
    kept: float


@dataclass(frozen=True)
class Coverage:
    """What was measured of one source of actions, in the box [-1, 1] or one-hot; averages over agents.

    Attributes:
        distance: energy distance to the data nearby; error: its standard error over observations.
        spread: root mean square deviation of the actions at one observation, None where that is not known.
        spread_nearby: the same of one action at each of the K nearest observations.
        modes: None where the teams are not known, or nowhere told apart.
    """

    distance: float
    error: float
    spread: float | None
    spread_nearby: float
    modes: Modes | None


@dataclass(frozen=True)
class Samples:
    """Actions of one source: one at each of the K nearest observations, and m at each anchor."""

    nearby: np.ndarray  # [N, n, K, A]
    here: np.ndarray  # [N, n, m, A]


@dataclass(frozen=True)
class Teams:
    """The T teams that made the data.

    Attributes:
        names: theirs; actors: what they do without noise.
        noise: deviation of the noise on top, or share of uniform choices.
        labels: which of them took each action nearby, int64 [N, n, K].
        here: their actions at the anchors, [T, N, n, A].
        radius: within which an action lies near a team's, [N, 1].
        own: bool [T, N, n], whether the action of the data at an anchor is the team's, and near what it does.
        shares: of the actions nearby of which that holds, [T, N, n].
        apart: bool [N, n], the anchors at which no action can lie near two teams'.
        telling: bool [N, n], those of them at which two teams (or the only one) are present.
    """

    names: tuple[str, ...]
    actors: tuple[TeamActor, ...]
    noise: float
    labels: np.ndarray
    here: np.ndarray
    radius: np.ndarray
    own: np.ndarray
    shares: np.ndarray
    apart: np.ndarray
    telling: np.ndarray


@dataclass(frozen=True)
class Surroundings:
    """n anchors, observations of a data set drawn at random, with the data around them, for each agent on its own.

    Attributes:
        dataset: whose.
        seed: of the draw and of all noise.
        obs: of the anchors, [N, n, O]; obs_nearby: of their K nearest, [N, n, K, O]; as the worlds give them.
        actions: of the data there, [N, n, K, A], in the box [-1, 1] or one-hot.
        halves: of the data at the 2 K nearest, at random, each [N, n, K, A].
        teams: who made the data, None unless all of them ship with the package.
    """

    dataset: Dataset
    seed: int
    obs: np.ndarray
    obs_nearby: np.ndarray
    actions: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]
    teams: Teams | None

    @property
    def joint_actions(self) -> int:
        """How many a policy is asked for."""
        return self.obs.shape[1] * (self.actions.shape[2] + SAMPLES)

    def rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose))


def draw(dataset: Dataset, observations: int, neighbours: int, seed: int) -> Surroundings:
    """Anchors and what lies around them.

    Args:
        dataset: what `om2p_data.dataset.load` returns.
        observations: n; all there are where the data have fewer.
        neighbours: K.
        seed: of the draw and of all noise.

    Raises:
        UserError: the data have no 2 K transitions besides each anchor.
    """
    episodes, spec = dataset.episodes, dataset.environment.spec
    if episodes.num_transitions <= 2 * neighbours:
        raise UserError(
            f"{dataset.id} has {episodes.num_transitions:,} transitions: too few for 2 x {neighbours} neighbours"
        )
    rng = np.random.default_rng((seed, _DRAW))
    anchors = np.sort(rng.choice(len(episodes.actions), min(observations, len(episodes.actions)), replace=False))
    rows = np.stack(
        [
            coverage.neighbours(episodes.obs[episodes.obs_index, agent, :size], anchors, 2 * neighbours)
            for agent, size in enumerate(spec.obs_dims)
        ]
    )  # [N, n, 2K]
    agents = np.arange(spec.num_agents)[:, None, None]
    around = _unit(episodes.actions[rows, agents], spec)  # [N, n, 2K, A]
    mixed = np.take_along_axis(around, rng.permuted(np.indices(rows.shape)[2], axis=2)[..., None], 2)
    nearest = rows[:, :, :neighbours]
    obs = episodes.obs[episodes.obs_index[anchors]].swapaxes(0, 1)
    obs_nearby = episodes.obs[episodes.obs_index[nearest], agents]
    actions = around[:, :, :neighbours]
    made_by = np.repeat(episodes.policy, episodes.lengths)
    own = _unit(episodes.actions[anchors].swapaxes(0, 1), spec)
    return Surroundings(
        dataset=dataset,
        seed=seed,
        obs=obs,
        obs_nearby=obs_nearby,
        actions=actions,
        halves=(mixed[:, :, :neighbours], mixed[:, :, neighbours:]),
        teams=_known_teams(dataset, (made_by[anchors], obs, own), (made_by[nearest], obs_nearby, actions)),
    )


def of_policy(around: Surroundings, team: TeamPolicy, progress: Progress | None = None) -> Samples:
    """What a learned team does. `progress` is called with the number of joint actions that were taken."""
    streams = SeedStreams([around.seed], EVALUATION)

    @torch.no_grad()
    def act(obs: np.ndarray) -> np.ndarray:
        taken = []
        for start in range(0, obs.shape[1], _BATCH):
            inputs = torch.from_numpy(obs[:, start : start + _BATCH])
            eps = streams.normal(*inputs.shape[:2], team.actor.noise_dim)
            taken.append(team.actor.act(inputs, eps).numpy())
            if progress is not None:
                progress(inputs.shape[1])
        return np.concatenate(taken, 1)

    return _samples(around, *map(act, _asked(around)))


def of_teams(around: Surroundings) -> Samples | None:
    """What the teams that made the data would do if they were asked again, None where they are not known.

    Which team is asked is drawn from those that took the actions nearby.
    """
    teams, task = around.teams, around.dataset.task
    if teams is None or task is None:
        return None
    rng = around.rng(_TEAMS)
    policies = [with_noise(actor, task, teams.noise) for actor in teams.actors]

    def act(obs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        every = np.stack([policy.act(obs.swapaxes(0, 1), rng).swapaxes(0, 1) for policy in policies])  # [T, N, B, A]
        return np.take_along_axis(every, labels.reshape(1, *obs.shape[:2], 1), 0)[0]

    drawn = rng.integers(teams.labels.shape[2], size=(*teams.labels.shape[:2], SAMPLES))
    labels = rng.permuted(teams.labels, axis=2), np.take_along_axis(teams.labels, drawn, 2)
    with one_torch_thread():
        return _samples(around, *map(act, _asked(around), labels))


def uniform(around: Surroundings) -> Samples:
    """Uniform actions."""
    rng, spec = around.rng(_UNIFORM), around.dataset.environment.spec

    def act(obs: np.ndarray) -> np.ndarray:
        if not spec.discrete[0]:
            return np.where(spec.padding[1][:, None], 0.0, rng.uniform(-1.0, 1.0, (*obs.shape[:2], spec.act_dim)))
        choices = (rng.random(obs.shape[:2]) * np.array(spec.act_dims)[:, None]).astype(np.int64)
        return np.eye(spec.act_dim)[choices]

    return _samples(around, *map(act, _asked(around)))


def measure(around: Surroundings, samples: Samples) -> Coverage:
    """How far the actions of one source keep to the data."""
    distances = coverage.energy_distance(around.actions, samples.nearby)
    modes, teams = None, around.teams
    if teams is not None and teams.telling.any():
        within = coverage.near(samples.here, teams.here[..., None, :], teams.radius[..., None])
        shares = within.mean(-1)  # [T, N, n]
        modes = _modes(teams, shares, coverage.modes_kept(shares, teams.shares))
    return Coverage(*_mean(distances), _deviation(samples.here), _deviation(samples.nearby), modes)


def of_data(around: Surroundings, again: Samples | None) -> Coverage:
    """The data beside themselves: the floor of all distances.

    Args:
        around: where.
        again: what `of_teams` gives, from which alone the spread of the data at one observation is known.
    """
    modes, teams = None, around.teams
    if teams is not None and teams.telling.any():
        modes = _modes(teams, teams.own, coverage.present(teams.shares).sum(0))
    spread = None if again is None else _deviation(again.here)
    return Coverage(*_mean(coverage.energy_distance(*around.halves)), spread, _deviation(around.actions), modes)


def _asked(around: Surroundings) -> tuple[np.ndarray, np.ndarray]:
    """Observations at which actions are wanted: each of the neighbours once, each anchor m times; [N, B, O]."""
    flat = around.obs_nearby.reshape(len(around.obs), -1, around.obs.shape[-1])
    return flat, around.obs.repeat(SAMPLES, axis=1)


def _samples(around: Surroundings, nearby: np.ndarray, here: np.ndarray) -> Samples:
    """The actions there, [N, B, A] each."""
    agents, count = around.obs.shape[:2]
    return Samples(*(actions.reshape(agents, count, -1, actions.shape[-1]) for actions in (nearby, here)))


def _known_teams(
    dataset: Dataset,
    here: tuple[np.ndarray, np.ndarray, np.ndarray],
    nearby: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Teams | None:
    """The teams that made the data, if all of them ship with the package.

    Args:
        dataset: the data.
        here: index of the behaviour policy [n], observation [N, n, O] and action [N, n, A] of every anchor.
        nearby: the same of its neighbours, [N, n, K], [N, n, K, O] and [N, n, K, A].
    """
    task, hashes = dataset.task, [policy.hash for policy in dataset.policies]
    # A replay memory states the hash of the team it ends with, which did not make it: that goes by another name.
    levels = [policy.name.partition("@")[0] for policy in dataset.policies]
    if task is None or not levels or not set(levels) <= set(LEVELS):
        return None
    found = {team.card["hash"]: team for level in LEVELS if (team := shipped(task, level)) is not None}
    if not set(hashes) <= set(found):
        return None
    milestones = [found[digest] for digest in dict.fromkeys(hashes)]  # a mix may name one team twice
    actors = tuple(team.actor for team in milestones)
    noise = max(team.card["collection_noise"] for team in milestones)
    spec = dataset.environment.spec
    radius = np.array([[0.0 if spec.discrete[0] else coverage.noise_radius(noise, size)] for size in spec.act_dims])
    index = np.array([list(dict.fromkeys(hashes)).index(digest) for digest in hashes])
    meant, own = _claimed(actors, radius, index[here[0]], *here[1:])
    _, claimed = _claimed(actors, radius, index[nearby[0]], *nearby[1:])
    shares = claimed.mean(-1)
    apart = coverage.apart(meant, radius)
    several = coverage.present(shares).sum(0) >= min(2, len(actors))
    names = tuple(team.level for team in milestones)
    return Teams(names, actors, noise, index[nearby[0]], meant, radius, own, shares, apart, apart & several)


def _claimed(
    actors: Sequence[TeamActor], radius: np.ndarray, labels: np.ndarray, obs: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What T teams mean to do, [T, N, ..., A], and which actions are each one's own and near that, [T, N, ...]."""
    flat = torch.from_numpy(obs.reshape(len(obs), -1, obs.shape[-1]))
    with torch.no_grad(), one_torch_thread():
        meant = np.stack([actor(flat).numpy() for actor in actors]).reshape(len(actors), *actions.shape)
    within = coverage.near(actions, meant, radius.reshape(-1, *(1,) * (actions.ndim - 2)))
    return meant, within & (labels == np.arange(len(actors)).reshape(-1, *(1,) * (actions.ndim - 1)))


def _modes(teams: Teams, shares: np.ndarray, kept: np.ndarray) -> Modes:
    """Of shares near each team [T, N, n] and numbers of modes [N, n], at the anchors that tell."""
    by_team = tuple(shares[:, teams.telling].mean(1).tolist())
    return Modes(by_team, 1.0 - sum(by_team), float(kept[teams.telling].mean()))


def _unit(actions: np.ndarray, spec: TeamSpec) -> np.ndarray:
    """Stored actions [N, ..., A] in the box [-1, 1]."""
    return np.moveaxis(to_unit(np.moveaxis(actions, 0, -2), spec), -2, 0)


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean of [N, n] and its standard error over the n, whose agents are not independent."""
    by_anchor = values.mean(0)
    return float(by_anchor.mean()), float(by_anchor.std(ddof=1) / len(by_anchor) ** 0.5) if len(by_anchor) > 1 else 0.0


def _deviation(samples: np.ndarray) -> float:
    """Root mean square deviation of samples [N, n, ., A] from the mean of each set."""
    return float(coverage.variance(samples).mean()) ** 0.5
