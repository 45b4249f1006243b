"""Which of several behaviour teams played each episode, told apart by what they did alone.

Data that several teams made hold several joint conventions: who goes where, and who makes room. Agents that clone such
data each on its own mix them: what each of them does is right, and what they do together is not. A team that plays an
episode plays all of it, and all of its agents are in it, so that whole episodes tell who it was: a mixture of C
deterministic teams is fitted by expectation maximisation, annealed from where every team plays a little of everything
(Ueda and Nakano 1998), with one team more at a time, which begins with the episodes that the others fit worst.
"""

from __future__ import annotations

import itertools
import math
import sys
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from om2p_data.stacked import Activation, StackedMLP
from om2p_train.batches import statistics
from om2p_train.streams import TELLING_APART, SeedStreams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from om2p_train.batches import Transitions

_ROUNDS = 10
_UPDATES = 100  # of the networks, in a round
_BATCH = 64  # transitions that a network sees in an update
_HIDDEN = (64, 64)
_LEARNING_RATE = 3e-3
# By how much better a team has to fit an episode to be e times as likely, in units of the mean squared error of those
# that fit best. It falls from round to round by the same factor.
_WARMEST, _COLDEST = 1.0, 0.02
_LOOKS, _LOOKS_IN_ALL = 8, 24_000  # transitions by which an episode, and at least all of them, are judged in a round
_MORE_LOOKS = 4  # times as many at the end
# Where nobody says how many teams there are, some episodes teach nothing, and of these each team is to fit its own so
# many times better than any other does. Halves of what one team played are told apart by less than that.
_APART = 2.0
_ASIDE = 5  # one episode in so many
# And by more than rounding of what is next to no error, in units of the actions' variance.
_FLOOR = 0.01
_SOME_EPISODES, _SOME_ASIDE = 10, 2  # that a team has to have
# More than so many are no teams but a continuum: whatever differs from episode to episode and cannot be seen.
_MOST = 7
# Nobody has acted yet where an episode begins. If the most similar beginnings are of the same of two teams by so many
# standard errors more often than chance has it, then the world makes the difference, and not who plays.
_BY_CHANCE, _BEGINNINGS = 4.0, 4_096
_NEARLY_ALL = 0.9
# A team is acted as by the least that its return is likely to be: of a hundred episodes some are always lucky.
_LEAST_SHARE, _LEAST_EPISODES, _STANDARD_ERRORS = 0.01, 5, 2.0
# What judging holds of a layer at a time: on a processor as much as its cache does.
_AT_ONCE_ON_CPU, _AT_ONCE = 2**20, 2**26


class BehaviorTeams(NamedTuple):
    """C teams and what they are like.

    Attributes:
        labels: int64 [E], who played each episode.
        shares: of the transitions, [C].
        returns: mean team return of their episodes, [C]; NaN where a team has none.
        errors: standard errors of those, [C]; NaN where a team has fewer than two.
        best: the team of the highest return less two standard errors, among those with a hundredth of the transitions
            and five episodes; the largest where there is none.
        why: there are no more, where that was asked.
    """

    labels: Tensor
    shares: Tensor
    returns: Tensor
    errors: Tensor
    best: int
    why: str = ""

    @property
    def number(self) -> int:
        """C."""
        return len(self.shares)

    def facts(self) -> dict[str, Any]:
        """The teams as JSON values: shares, mean returns and their errors, and whom the policy plays as."""
        columns = (("shares", self.shares), ("returns", self.returns), ("standard_errors", self.errors))
        facts: dict[str, Any] = {name: [_number(value) for value in values.tolist()] for name, values in columns}
        return facts | {"plays": self.best} | ({"why_no_more": self.why} if self.why else {})

    def words(self) -> str:
        """The same for people."""
        if self.number == 1:
            return f"behaviour teams: the data are taken as one team's; {self.why}"
        words = [
            f"{value:.1f}{'' if math.isnan(error) else f' ± {error:.1f}'} ({share:.1%})"
            for value, error, share in zip(self.returns, self.errors, self.shares, strict=True)
            if not math.isnan(value)
        ]
        return (
            f"behaviour teams told apart, return ± standard error (share of the data): {', '.join(words)}; "
            f"plays as that of {self.returns[self.best]:.1f}"
        )


def tell_apart(
    data: Transitions,
    teams: int | Literal["auto"],
    label: str = "",
    show: bool = False,
    look: Callable[[], object] | None = None,
) -> BehaviorTeams:
    """Fit the mixture and say who played what. The same data give the same answer.

    Args:
        data: all transitions.
        teams: C, how many teams there are taken to be. One more than there are splits a team; one less leaves two of
            them mixed, which costs more. "auto": one, and one more as long as each of them plays its own episodes as
            no other would; more than seven are one.
        label: of the progress bar.
        show: whether there is one.
        look: called after every round.
    """
    rounds, why = _Rounds(label, show, look), ""
    if teams == "auto":
        teams, why = _how_many(data, rounds)
        if teams == 1:
            return described(data, 1, torch.zeros_like(data.lengths), why)
    _, labels = next(itertools.islice(_grown(data, rounds), teams - 1, None))
    return described(data, teams, labels, why)


def _how_many(data: Transitions, rounds: _Rounds) -> tuple[int, str]:
    """How many teams play their own episodes as no other would, and why there are no more."""
    for number, (mixture, labels) in enumerate(_grown(data, rounds, aside=True), 1):
        if number > 1 and (why := mixture.why_not(labels)):
            return number - 1, why
        if number > _MOST:
            break
        if len(labels) < (number + 1) * _SOME_EPISODES:
            return number, f"there are too few episodes for {number + 1}"
    return 1, f"more than {_MOST} would differ, so something changes with every episode"


def _grown(data: Transitions, rounds: _Rounds, aside: bool = False) -> Iterator[tuple[_Mixture, Tensor]]:
    """Mixtures of one team, of two, and so on without end, each with who most likely played each episode, int64 [E]."""
    labels = torch.zeros_like(data.lengths)
    for number in itertools.count(1):
        mixture = _Mixture(data, labels, number, aside)
        labels = mixture.fit(rounds)
        yield mixture, labels
        labels = mixture.worst_as_one_more(labels)


def described(data: Transitions, teams: int, labels: Tensor, why: str = "") -> BehaviorTeams:
    """What teams are like whose episodes are known.

    Args:
        data: all transitions.
        teams: C.
        labels: int64 [E].
        why: as the attribute.
    """
    own = F.one_hot(labels, teams).double()  # [E, C]
    counts, transitions = own.sum(0), data.lengths.double() @ own
    returns = data.team_returns @ own / counts  # 0 / 0 where there are none
    squares = (own * (data.team_returns.unsqueeze(1) - returns.nan_to_num()).square()).sum(0)
    errors = torch.where(counts > 1, (squares / (counts - 1.0) / counts).sqrt(), torch.nan)
    shares = transitions / transitions.sum()
    surely = (returns - _STANDARD_ERRORS * errors).nan_to_num(-torch.inf, neginf=-torch.inf)
    candidates = torch.where((shares >= _LEAST_SHARE) & (counts >= _LEAST_EPISODES), surely, -torch.inf)
    known = bool(candidates.max() > -torch.inf)
    return BehaviorTeams(labels, shares, returns, errors, int((candidates if known else shares).argmax()), why)


class _Rounds(NamedTuple):
    """How rounds are shown; as the arguments of `tell_apart`."""

    label: str
    show: bool
    look: Callable[[], object] | None

    def of(self, teams: int) -> Iterator[int]:
        """Their numbers."""
        rounds = tqdm(
            range(_ROUNDS),
            desc=f"{self.label}: telling behaviour teams apart, as {teams}",
            unit="round",
            dynamic_ncols=True,
            leave=False,
            disable=not (self.show and sys.stderr.isatty()),
        )
        for number in rounds:
            yield number
            if self.look is not None:
                self.look()


class _Mixture:
    """Networks of C teams of N agents, and how likely each team is to have played each episode.

    Args:
        data: all transitions.
        labels: int64 [E], whose episodes they are to begin with.
        teams: C.
        aside: whether some episodes teach nothing, so that what fits them is no memory of them.
    """

    def __init__(self, data: Transitions, labels: Tensor, teams: int, aside: bool):
        agents, device = data.actions.shape[1], data.actions.device
        self._data, self._streams = data, SeedStreams([teams], TELLING_APART, device)
        # Whatever the units of the observations are, every component is to weigh the same.
        mean, scale = statistics(data.obs, True)
        self._mean, self._scale = mean.repeat(teams, 1, 1), scale.repeat(teams, 1, 1)
        with device:
            self._net = StackedMLP(
                teams * agents,
                data.obs.shape[-1],
                data.actions.shape[-1],
                _HIDDEN,
                Activation.RELU,
                generator=self._streams.generators[0],
            )
        self._optimizer = torch.optim.Adam(self._net.parameters(), _LEARNING_RATE, fused=True)
        self._likely = F.one_hot(labels, teams).float()  # [E, C]
        self._aside = torch.zeros_like(labels, dtype=torch.bool)
        if aside:
            self._aside[self._mixed()[: len(labels) // _ASIDE]] = True

    def fit(self, rounds: _Rounds) -> Tensor:
        """Who most likely played each episode, int64 [E]."""
        for number in rounds.of(self._likely.shape[1]):
            self._learn()
            self._judge(_WARMEST * (_COLDEST / _WARMEST) ** (number / (_ROUNDS - 1)))
        self._judge(_COLDEST, _MORE_LOOKS)
        return self._likely.argmax(-1)

    @torch.no_grad()
    def worst_as_one_more(self, labels: Tensor) -> Tensor:
        """The labels, but one more team has the C + 1st part of all episodes, those that their teams fit worst."""
        episodes, teams = self._likely.shape
        own = self._errors_of_episodes(_MORE_LOOKS).gather(1, labels.unsqueeze(1)).squeeze(1)
        worst = own.argsort(descending=True)[: max(1, episodes // (teams + 1))]
        return labels.index_fill(0, worst, teams)

    @torch.no_grad()
    def why_not(self, labels: Tensor) -> str:
        """Why the labels are not of C teams that differ in what they do, "" if they are."""
        teams = self._likely.shape[1]
        own = F.one_hot(labels, teams).bool()
        if (own.sum(0) < _SOME_EPISODES).any() or (own[self._aside].sum(0) < _SOME_ASIDE).any():
            return f"of {teams} one would have next to no episodes"
        errors, lengths = self._errors_of_episodes(_MORE_LOOKS)[self._aside], self._data.lengths[self._aside]
        own = own[self._aside]
        weights = own.T * lengths / lengths.sum()  # [C, E']
        others = weights @ errors.masked_fill(own, torch.inf).amin(1)
        least = weights @ (errors[own] + _FLOOR * self._data.actions.var(0).sum())
        times = float((others / least).min())
        if times < _APART:
            return f"{teams} would differ too little (by a factor of {times:.1f}, at least {_APART:.0f} is asked)"
        if not _begins_alike(self._data, labels, self._mixed()[:_BEGINNINGS]):
            return f"{teams} would differ where episodes begin, so it is the world, or one team has two ways"
        return ""

    def _mixed(self) -> Tensor:
        """All episodes in an order that means nothing, int64 [E]."""
        generator = self._streams.generators[0]
        return torch.randperm(len(self._likely), generator=generator, device=self._likely.device)

    def _learn(self) -> None:
        """Fit every team to the episodes that are likely to be its own."""
        weights = (self._likely * self._data.lengths.unsqueeze(1)).clamp_min(_TINY)
        weights = weights.masked_fill(self._aside.unsqueeze(1), 0.0).T  # [C, E]
        generator = self._streams.generators[0]
        drawn = torch.multinomial(weights, _UPDATES * _BATCH, replacement=True, generator=generator)
        rows = self._rows(drawn).view(-1, _UPDATES, _BATCH)
        for index in range(_UPDATES):
            loss = self._errors(rows[:, index]).mean(-1).sum()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()

    @torch.no_grad()
    def _judge(self, temperature: float, more: int = 1) -> None:
        """Find out how likely each team is to have played each episode, from some of its transitions.

        Args:
            temperature: see `_WARMEST`.
            more: times as many transitions.
        """
        if self._likely.shape[1] > 1:
            errors = self._errors_of_episodes(more)
            unit = errors.amin(-1).mean().clamp_min(_TINY)
            self._likely = torch.softmax(-errors / (temperature * unit), -1)

    def _errors_of_episodes(self, more: int) -> Tensor:
        """Mean squared error of every team at some transitions of every episode, [E, C]."""
        episodes, teams = self._likely.shape
        looks = min(more * max(_LOOKS, -(-_LOOKS_IN_ALL // episodes)), int(self._data.lengths.max()))
        widest = max(*_HIDDEN, self._data.obs.shape[-1]) * teams * self._data.actions.shape[1]
        device = self._likely.device
        rows = self._rows(torch.arange(episodes, device=device).repeat_interleave(looks).unsqueeze(0))
        numbers = _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE
        at_once = looks * max(1, numbers // (widest * looks))
        parts = [
            self._errors(some.expand(teams, -1)).unflatten(-1, (-1, looks)).mean(-1) for some in rows.split(at_once, -1)
        ]
        return torch.cat(parts, -1).T

    def _rows(self, episodes: Tensor) -> Tensor:
        """A transition of each of the episodes [C, n]."""
        lengths = self._data.lengths[episodes]
        places = (self._streams.uniform(*episodes.shape) * lengths).long()
        return self._data.starts[episodes] + places.minimum(lengths - 1)

    def _errors(self, rows: Tensor) -> Tensor:
        """Squared errors of the teams at transitions rows [C, n], summed over agents; [C, n]."""
        teams, count = rows.shape
        obs = self._data.obs[self._data.obs_index[rows]].transpose(1, 2).flatten(0, 1)  # [C * N, n, O]
        actions = self._data.actions[rows].transpose(1, 2).flatten(0, 1)
        square = (self._net((obs - self._mean) / self._scale) - actions).square().sum(-1)
        return square.view(teams, -1, count).sum(1)


def _begins_alike(data: Transitions, labels: Tensor, some: Tensor) -> bool:
    """Whether what agents see where episodes begin is the same whoever plays: Schilling's (1986) test of neighbours.

    Args:
        data: all transitions.
        labels: int64 [E].
        some: int64, episodes by which that is judged.
    """
    labels, first = labels[some], data.obs[data.obs_index[data.starts[some]]].flatten(1)
    deviation = first.std(0)
    moves = deviation > _TINY
    if not moves.any():
        return True
    places = first[:, moves] / deviation[moves]
    distances = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    for pair in itertools.combinations(labels.unique().tolist(), 2):
        # Two by two: where one team is taken for two, the others, which begin as they all do, would hide it.
        theirs = torch.isin(labels, torch.tensor(pair, device=labels.device))
        if not _mixed_up(distances[theirs][:, theirs], labels[theirs] == pair[0]):
            return False
    return True


def _mixed_up(distances: Tensor, first: Tensor) -> bool:
    """Whether the nearest to a point are not of its own kind more often than chance has it.

    Args:
        distances: [n, n], infinite on the diagonal.
        first: bool [n], of which of two kinds it is.
    """
    # As near as the nearest: worlds that begin in one of a few ways have many of these.
    nearest = (distances <= distances.amin(1, keepdim=True) * (1.0 + 1e-6)).float()
    alike = (nearest * (first.unsqueeze(1) == first)).sum(1) / nearest.sum(1)
    share = float(first.double().mean())
    expected = share**2 + (1.0 - share) ** 2
    # Twice the variance of independent trials: two that are nearest to each other count twice.
    error = math.sqrt(2.0 * expected * (1.0 - expected) / len(first))
    # Of few points so many errors are more than there can be, yet that nearly all are so is no chance either.
    most = expected + min(_BY_CHANCE * error, _NEARLY_ALL * (1.0 - expected))
    return float(alike.mean()) <= most


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


_TINY = 1e-12
