"""Trained teams in fresh episodes: returns of each policy file, and what they come to over all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from om2p_data.errors import UserError
from om2p_data.spec import EnvironmentCard
from om2p_data.storage import reason, write_whole
from om2p_train.arena import named
from om2p_train.evaluation import Evaluator
from om2p_train.policy import TeamPolicy, load_policy


@dataclass(frozen=True)
class Score:
    """What one policy file got.

    Attributes:
        path: of the file.
        environment: what was played.
        returns: undiscounted team returns, float64 [episodes].
    """

    path: Path
    environment: EnvironmentCard
    returns: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Sample standard deviation over episodes; 0 of a single one."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        return self.std / len(self.returns) ** 0.5


def evaluate(
    paths: Sequence[Path],
    episodes: int,
    seed: int,
    env: str | None = None,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> list[Score]:
    """Play fresh episodes with every policy, the same starts and noise for all.

    Args:
        paths: policy files.
        episodes: of each.
        seed: of the episodes and of the action noise.
        env: one of our tasks to play in; by default each policy's own environment.
        device: torch device.
        progress: whether to show a bar.

    Raises:
        UserError: a file is no policy, its environment cannot be made here, the team of `env` is another, or there is
            no such device.
    """
    teams = [load_policy(path) for path in paths]
    places = [
        team.environment if env is None else _fitting(path, team, env) for path, team in zip(paths, teams, strict=True)
    ]
    try:
        for team in teams:
            team.actor.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"device {device!r} cannot be used: {lines[0]}; 'cpu' always can") from None
    scores = []
    with tqdm(total=episodes * len(paths), unit="episode", disable=not progress) as bar:
        for number, (path, team, place) in enumerate(zip(paths, teams, places, strict=True)):
            evaluator = Evaluator(team.actor, place, [seed], episodes, device)
            try:
                returns = evaluator.returns(seed, bar.update)[0]
            finally:
                evaluator.close()
            bar.n = (number + 1) * episodes  # episodes beyond the wanted ones, played beside the last of them
            scores.append(Score(path, place, returns))
    return scores


def table(scores: Sequence[Score]) -> str:
    """One line a policy, and one for all of them: mean and sample deviation over the files."""
    width = max(len(str(score.path)) for score in scores)
    lines = []
    for score in scores:
        own = score.environment.normalized(score.mean)
        normalized = "" if own is None else f", normalised {own:.1f}"
        lines.append(
            f"{score.path!s:{width}}  return {score.mean:.1f} ± {score.standard_error:.1f} (standard error, "
            f"deviation {score.std:.1f}, {len(score.returns)} episodes){normalized}"
        )
    if len(scores) > 1 and len({score.environment.name for score in scores}) == 1:
        means = np.array([score.mean for score in scores])
        own = [scores[0].environment.normalized(mean) for mean in means]
        whole = [value for value in own if value is not None]
        normalized = f", normalised {np.mean(whole):.1f} ± {np.std(whole, ddof=1):.1f}" if whole else ""
        lines.append(
            f"{'all':{width}}  return {means.mean():.1f} ± {means.std(ddof=1):.1f} "
            f"(deviation over {len(means)} policies){normalized}"
        )
    return "\n".join(lines)


def write(scores: Sequence[Score], path: Path, seed: int) -> None:
    """Write every episode's return as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    content = [
        {
            "policy": str(score.path),
            "environment": score.environment.name,
            "seed": seed,
            "mean": score.mean,
            "std": score.std,
            "standard_error": score.standard_error,
            "normalized": score.environment.normalized(score.mean),
            "returns": score.returns.tolist(),
        }
        for score in scores
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def _fitting(path: Path, team: TeamPolicy, env: str) -> EnvironmentCard:
    card = named(env)
    own, other = team.spec, card.spec
    if (own.obs_dims, own.act_dims, own.discrete) != (other.obs_dims, other.act_dims, other.discrete):
        raise UserError(
            f"{path} cannot play {card.name}: its agents have observations {own.obs_dims} and actions {own.act_dims}, "
            f"there they have {other.obs_dims} and {other.act_dims}"
        )
    return card
