"""Which of several behaviour teams played each episode, told apart by what they did alone.

Data that several teams made hold several joint conventions: who goes where, and who makes room. Agents that clone such
data each on its own mix them: what each of them does is right, and what they do together is not. A team that plays an
episode plays all of it, and all of its agents are in it, so that whole episodes tell who it was: a mixture of C
deterministic teams is fitted by expectation maximisation, annealed from where every team plays a little of everything
(Ueda and Nakano 1998).
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from om2p_data.stacked import Activation, StackedMLP
from om2p_train.batches import statistics
from om2p_train.networks import per_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from om2p_train.batches import Transitions
    from om2p_train.streams import SeedStreams

_ROUNDS = 20
_UPDATES = 100  # of the networks, in a round
_BATCH = 64  # transitions that a network sees in an update
_HIDDEN = (64, 64)
_LEARNING_RATE = 3e-3
# By how much better a team has to fit an episode to be e times as likely, in units of the mean squared error of those
# that fit best. It falls from round to round by the same factor.
_WARMEST, _COLDEST = 1.0, 0.02
_LOOKS, _LOOKS_IN_ALL = 8, 24_000  # transitions by which an episode, and at least all of them, are judged in a round
_MORE_LOOKS = 4  # times as many at the end
# A team is acted as by the least that its return is likely to be: of a hundred episodes some are always lucky.
_LEAST_SHARE, _LEAST_EPISODES, _STANDARD_ERRORS = 0.01, 5, 2.0
# What judging holds of a layer at a time: on a processor as much as its cache does.
_AT_ONCE_ON_CPU, _AT_ONCE = 2**20, 2**26


class BehaviorTeams(NamedTuple):
    """C teams, as each of S seeds tells them apart on its own.

    Attributes:
        labels: int64 [S, E], who played each episode.
        shares: of the transitions, [S, C].
        returns: mean team return of their episodes, [S, C]; NaN where a team has none.
        errors: standard errors of those, [S, C]; NaN where a team has fewer than two.
        best: int64 [S], the team of the highest return less two standard errors, among those with a hundredth of the
            transitions and five episodes; the largest where there is none.
    """

    labels: Tensor
    shares: Tensor
    returns: Tensor
    errors: Tensor
    best: Tensor

    def facts(self) -> list[dict[str, Any]]:
        """The teams of each seed as JSON values: share, mean return and its error, and whom the policy plays as."""
        columns = {
            name: [[_number(value) for value in row] for row in values.tolist()]
            for name, values in (("shares", self.shares), ("returns", self.returns), ("standard_errors", self.errors))
        }
        return [
            {name: rows[seed] for name, rows in columns.items()} | {"plays": best}
            for seed, best in enumerate(self.best.tolist())
        ]

    def words(self) -> list[str]:
        """The same for people."""
        lines = []
        for fact in self.facts():
            words = [
                f"{value:.1f}{'' if error is None else f' ± {error:.1f}'} ({share:.1%})"
                for value, error, share in zip(fact["returns"], fact["standard_errors"], fact["shares"], strict=True)
                if value is not None
            ]
            best = fact["returns"][fact["plays"]]
            lines.append(
                f"behaviour teams told apart, return ± standard error (share of the data): {', '.join(words)}; "
                f"plays as that of {best:.1f}"
            )
        return lines


def tell_apart(
    data: Transitions,
    teams: int,
    streams: SeedStreams,
    label: str = "",
    show: bool = False,
    look: Callable[[], object] | None = None,
) -> BehaviorTeams:
    """Fit the mixture and say who played what.

    Args:
        data: all transitions.
        teams: C, how many teams there are taken to be. One more than there are splits a team, which does little; one
            less leaves two of them mixed.
        streams: random numbers, one stream a seed.
        label: of the progress bar.
        show: whether there is one.
        look: called after every round.
    """
    mixture = _Mixture(data, teams, streams)
    rounds = tqdm(
        range(_ROUNDS),
        desc=f"{label}: telling {teams} behaviour teams apart",
        unit="round",
        dynamic_ncols=True,
        disable=not (show and sys.stderr.isatty()),
    )
    for number in rounds:
        mixture.learn()
        mixture.judge(_WARMEST * (_COLDEST / _WARMEST) ** (number / (_ROUNDS - 1)))
        if look is not None:
            look()
    return described(data, teams, mixture.judge(_COLDEST, _MORE_LOOKS).argmax(-1))


def described(data: Transitions, teams: int, labels: Tensor) -> BehaviorTeams:
    """What teams are like whose episodes are known.

    Args:
        data: all transitions.
        teams: C.
        labels: int64 [S, E].
    """
    own = F.one_hot(labels, teams).double()  # [S, E, C]
    counts, transitions = own.sum(1), torch.einsum("sec,e->sc", own, data.lengths.double())
    returns = torch.einsum("sec,e->sc", own, data.team_returns) / counts  # 0 / 0 where there are none
    squares = torch.einsum("sec,esc->sc", own, (data.team_returns[:, None, None] - returns).square())
    errors = torch.where(counts > 1, (squares / (counts - 1.0) / counts).sqrt(), torch.nan)
    shares = transitions / transitions.sum(-1, keepdim=True)
    surely = (returns - _STANDARD_ERRORS * errors).nan_to_num(-torch.inf, neginf=-torch.inf)
    candidates = torch.where((shares >= _LEAST_SHARE) & (counts >= _LEAST_EPISODES), surely, -torch.inf)
    best = torch.where(candidates.amax(-1) > -torch.inf, candidates.argmax(-1), shares.argmax(-1))
    return BehaviorTeams(labels, shares, returns, errors, best)


class _Mixture:
    """Networks of C teams of N agents for each of S seeds, and how likely each team is to have played each episode."""

    def __init__(self, data: Transitions, teams: int, streams: SeedStreams):
        episodes, agents = len(data.lengths), data.actions.shape[1]
        self._data, self._streams = data, streams
        # Whatever the units of the observations are, every component is to weigh the same.
        mean, scale = statistics(data.obs, True)
        stack = len(streams.generators) * teams
        self._mean, self._scale = mean.repeat(stack, 1, 1), scale.repeat(stack, 1, 1)
        self._net = per_seed(
            streams,
            lambda g: StackedMLP(
                teams * agents, data.obs.shape[-1], data.actions.shape[-1], _HIDDEN, Activation.RELU, generator=g
            ),
        )
        self._optimizer = torch.optim.Adam(self._net.parameters(), _LEARNING_RATE, fused=True)
        # Whoever is drawn first is as likely as any other: what the networks then happen to learn sets them apart.
        self._likely = F.one_hot(streams.integers(teams, 1, episodes), teams).float()  # [S, E, C]

    def learn(self) -> None:
        """Fit every team to the episodes that are likely to be its own."""
        seeds, _, teams = self._likely.shape
        weights = (self._likely * self._data.lengths.unsqueeze(-1)).transpose(1, 2).clamp_min(_TINY)  # [S, C, E]
        drawn = [
            torch.multinomial(own, _UPDATES * _BATCH, replacement=True, generator=generator)
            for own, generator in zip(weights, self._streams.generators, strict=True)
        ]
        rows = self._rows(torch.stack(drawn)).view(seeds, teams, _UPDATES, _BATCH)
        for index in range(_UPDATES):
            loss = self._errors(rows[:, :, index]).mean(-1).sum()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()

    @torch.no_grad()
    def judge(self, temperature: float, more: int = 1) -> Tensor:
        """How likely each team is to have played each episode, [S, E, C]; from some of its transitions.

        Args:
            temperature: see `_WARMEST`.
            more: times as many transitions.
        """
        seeds, episodes, teams = self._likely.shape
        looks = min(more * max(_LOOKS, -(-_LOOKS_IN_ALL // episodes)), int(self._data.lengths.max()))
        widest = max(*_HIDDEN, self._data.obs.shape[-1]) * seeds * teams * self._data.actions.shape[1]
        every = torch.arange(episodes, device=self._likely.device).repeat_interleave(looks)
        rows = self._rows(every.expand(seeds, 1, -1))  # [S, 1, E * looks]
        numbers = _AT_ONCE_ON_CPU if rows.device.type == "cpu" else _AT_ONCE
        at_once = looks * max(1, numbers // (widest * looks))
        parts = [
            self._errors(some.expand(-1, teams, -1)).unflatten(-1, (-1, looks)).mean(-1)
            for some in rows.split(at_once, -1)
        ]
        errors = torch.cat(parts, -1).transpose(1, 2)  # [S, E, C]
        unit = errors.amin(-1).mean(-1).clamp_min(_TINY)
        self._likely = torch.softmax(-errors / (temperature * unit[:, None, None]), -1)
        return self._likely

    def _rows(self, episodes: Tensor) -> Tensor:
        """A transition of each of the episodes [S, C, n]."""
        places = self._streams.uniform(1, *episodes.shape[1:])
        lengths = self._data.lengths[episodes]
        return self._data.starts[episodes] + (places * lengths).long().clamp_max(lengths - 1)

    def _errors(self, rows: Tensor) -> Tensor:
        """Squared errors of the teams at transitions rows [S, C, n], summed over agents; [S, C, n]."""
        seeds, teams, count = rows.shape
        obs = self._data.obs[self._data.obs_index[rows]].transpose(2, 3).flatten(0, 2)  # [S * C * N, n, O]
        actions = self._data.actions[rows].transpose(2, 3).flatten(0, 2)
        square = (self._net((obs - self._mean) / self._scale) - actions).square().sum(-1)
        return square.view(seeds, teams, -1, count).sum(2)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


_TINY = 1e-12
