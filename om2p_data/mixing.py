"""Data sets mixed from others: whole episodes, by shares of the transitions."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from om2p_data import dataset
from om2p_data.dataset import BehaviorPolicy, Dataset
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.provenance import commit
from om2p_data.rollout import enough

_TOLERANCE = 1e-6  # within which shares sum to 1; 0.1 + 0.2 + 0.7 does not do so exactly


@dataclass(frozen=True)
class Part:
    """What a mix took from one data set.

    Attributes:
        id, hash: of the data set; the hash is of its contents.
        asked, achieved: share of the mix's transitions. Whole episodes seldom meet a share exactly.
        episodes, transitions: how many were taken.
        return_mean, return_std: team return of these episodes; None where there are none.
    """

    id: str
    hash: str
    asked: float
    achieved: float
    episodes: int
    transitions: int
    return_mean: float | None
    return_std: float | None


@dataclass(frozen=True)
class Mixed:
    """A data set that was just written.

    Attributes:
        folder: where it lies.
        episodes: its data.
        parts: what came from where.
        repeated: how many episodes came from an earlier source already: where two were collected with one seed, or one
            is a mix of the other.
    """

    folder: Path
    episodes: Episodes
    parts: tuple[Part, ...]
    repeated: int


def mix(
    dataset_id: str,
    shares: Mapping[str, float | None],
    *,
    transitions: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Mixed:
    """Draw whole episodes without replacement from data sets of one task, and write them as a new one.

    Each source's last episode is completed, so a little more than its share may be taken.

    Args:
        dataset_id: `<namespace>/<task>/<tier>-v<N>` of the new data set.
        shares: data set -> share of the transitions, in [0, 1]; they sum to 1. One may be None, for the rest.
        transitions: how many are wanted; by default as many as the shares allow.
        seed: of the draw.
        overwrite: replace a data set of that id.
        root: folder of all data sets; by default Minari's.
        progress: show a bar on a terminal.

    Raises:
        UserError: shares outside [0, 1] or that do not sum to 1, sources that differ in their agents, sizes, rewards or
            worlds (the message says in what), or fewer transitions than are wanted (it says how many would do).
    """
    dataset.ensure_free(dataset_id, overwrite, root)
    exact = _resolve(shares)
    if dataset_id in exact:
        raise UserError(f"{dataset_id} cannot be a source of itself")
    if transitions is not None and transitions < 1:
        raise UserError(f"transitions must be 1 or more, not {transitions}")
    sources = {name: dataset.load(name, root) for name in exact}
    _check_alike(list(sources.values()))
    wanted = _wanted(sources, exact, transitions)
    # A source's draw depends on its place alone, and not on what is drawn from the others.
    streams = np.random.SeedSequence(seed).spawn(len(sources))
    drawn = {
        name: _draw(source.episodes.lengths, wanted[name], np.random.default_rng(stream))
        for (name, source), stream in zip(sources.items(), streams, strict=True)
    }
    chosen = {name: sources[name].episodes.select(index) for name, index in drawn.items() if len(index)}
    policies = _policies({name: sources[name].policies for name in chosen}, chosen)
    sizes = [len(sources[name].policies) for name in chosen]
    episodes = Episodes.concatenate(list(chosen.values()), policy_offsets=(np.cumsum(sizes) - sizes).tolist())
    kept, compact = np.unique(episodes.policy, return_inverse=True)
    episodes = replace(episodes, policy=compact.astype(np.int32), scan=False)
    parts = tuple(_part(sources[name], exact[name], chosen.get(name), episodes.num_transitions) for name in sources)
    repeated = _repeated(list(chosen.values()))
    first = next(iter(sources.values()))
    folder = dataset.write(
        dataset_id,
        episodes,
        environment=first.environment,
        policies=[policies[index] for index in kept],
        collection={
            "mixing": {
                "seed": seed,
                "transitions_requested": transitions,
                "parts": [asdict(part) for part in parts],
                "repeated_episodes": repeated,
            },
            "prey": _prey(first),
            "commit": commit(),
        },
        tier_sources=[
            {key: value for key, value in asdict(part).items() if key not in ("asked", "achieved")} for part in parts
        ],
        overwrite=overwrite,
        root=root,
        progress=progress,
    )
    return Mixed(folder, episodes, parts, repeated)


def parse_shares(arguments: Sequence[str]) -> dict[str, float | None]:
    """`["<id>=0.9", "<id>"]` -> shares by data set, None where none is given.

    Raises:
        UserError: a share that is no number, or a data set that is named twice.
    """
    shares: dict[str, float | None] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if name in shares:
            raise UserError(f"{name} is named twice")
        try:
            shares[name] = float(text) if equals else None
        except ValueError:
            raise UserError(f"a source is written <id>=<share>, e.g. {name}=0.9, not {argument!r}") from None
    return shares


def _resolve(shares: Mapping[str, float | None]) -> dict[str, float]:
    given = [share for share in shares.values() if share is not None]
    if not shares:
        raise UserError("name the data sets to mix: <id>=<share> <id>=<share> ...")
    for name, share in shares.items():
        if share is not None and not 0.0 <= share <= 1.0:  # NaN, too
            raise UserError(f"the share of {name} must lie in [0, 1], not {share}")
    left_out = [name for name, share in shares.items() if share is None]
    total = math.fsum(given)
    if len(left_out) > 1:
        raise UserError(f"one share may be left out, for the rest; here are {len(left_out)}: {', '.join(left_out)}")
    if total > 1.0 + _TOLERANCE or (not left_out and total < 1.0 - _TOLERANCE):
        raise UserError(f"shares must sum to 1, here {total:g}{'' if left_out else ' (one may be left out: the rest)'}")
    return {name: max(0.0, 1.0 - total) if share is None else share for name, share in shares.items()}


def _check_alike(sources: Sequence[Dataset]) -> None:
    """What algorithms and scores take for granted must be the same in all of them."""
    first, *others = sources
    expected = _traits(first)
    for other in others:
        for (name, value), found in zip(expected.items(), _traits(other).values(), strict=True):
            if found != value:
                raise UserError(f"{other.id} and {first.id} cannot be mixed: {name} is {found!r} beside {value!r}")


def _traits(source: Dataset) -> dict[str, Any]:
    spec = source.environment.spec
    return {
        "the environment": source.environment.name,
        "agents": list(spec.agents),
        "the size of observations": list(spec.obs_dims),
        "the space of actions": spec.action_space(),
        "the size of the stored state": None if source.episodes.state is None else source.episodes.state.shape[1],
        "the team reward": source.metadata.get("multi_agent", {}).get("team_reward"),
        "the prey": _prey(source),
    }


def _prey(source: Dataset) -> Any:
    return source.metadata.get("collection", {}).get("prey")


def _wanted(sources: Mapping[str, Dataset], shares: Mapping[str, float], transitions: int | None) -> dict[str, int]:
    """Transitions to take from every source."""
    held = {name: source.episodes.num_transitions for name, source in sources.items()}
    most = min(math.floor(held[name] / share) for name, share in shares.items() if share > 0)
    total = most if transitions is None else transitions
    wanted = {name: round(share * total) for name, share in shares.items()}
    for name, count in wanted.items():
        if count > held[name]:
            episodes = sources[name].episodes.num_episodes
            raise UserError(
                f"{name} holds {held[name]:,} transitions in {episodes:,} episodes, {count:,} are wanted of it: "
                f"--transitions {most} would do"
            )
    return wanted


def _draw(lengths: np.ndarray, transitions: int, rng: np.random.Generator) -> np.ndarray:
    """Indices, in their order, of random episodes that together hold at least so many transitions."""
    if transitions == 0:
        return np.zeros(0, dtype=np.int64)
    shuffled = rng.permutation(len(lengths))
    return np.sort(shuffled[: enough(lengths[shuffled], transitions)])


def _repeated(parts: Sequence[Episodes]) -> int:
    """How many episodes have the observations and actions of one of an earlier part."""
    earlier: set[bytes] = set()
    count = 0
    for part in parts:
        own = []
        for index, length in enumerate(part.lengths):
            row, step = part.episode_start[index], part.transition_start[index]
            digest = hashlib.blake2b(part.obs[row : row + length + 1].data, digest_size=16)
            digest.update(part.actions[step : step + length].data)
            own.append(digest.digest())
        count += sum(digest in earlier for digest in own)
        earlier.update(own)
    return count


def _policies(policies: Mapping[str, Sequence[BehaviorPolicy]], chosen: Mapping[str, Episodes]) -> list[BehaviorPolicy]:
    """The policies of all sources in order, with the figures of the episodes that were taken.

    Those that share name and step with one of another source are called <name>@<id of the source>.
    """
    taken = Counter((policy.name, policy.step) for listed in policies.values() for policy in listed)
    described = []
    for source, listed in policies.items():
        returns = chosen[source].team_returns
        for index, policy in enumerate(listed):
            own = returns[chosen[source].policy == index]
            name = policy.name if taken[policy.name, policy.step] == 1 else f"{policy.name}@{source}"
            mean, std = (float(own.mean()), float(own.std())) if len(own) else (0.0, 0.0)  # then it is left out
            described.append(replace(policy, name=name, return_mean=mean, return_std=std, episodes=len(own)))
    return described


def _part(source: Dataset, asked: float, chosen: Episodes | None, total: int) -> Part:
    returns = None if chosen is None else chosen.team_returns
    return Part(
        id=source.id,
        hash=source.metadata.get("content_hash") or source.episodes.content_hash(),
        asked=asked,
        achieved=0.0 if chosen is None else chosen.num_transitions / total,
        episodes=0 if chosen is None else chosen.num_episodes,
        transitions=0 if chosen is None else chosen.num_transitions,
        return_mean=None if returns is None else float(returns.mean()),
        return_std=None if returns is None else float(returns.std()),
    )
