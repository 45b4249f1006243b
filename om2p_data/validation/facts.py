"""Checks of a data set's metadata.json, alone and beside its data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.serialization import deserialize_space

from om2p_data import metadata
from om2p_data.episodes import Episodes
from om2p_data.storage import reason
from om2p_data.validation.findings import Report, Severity
from om2p_data.validation.raw import leaf_spaces

METADATA = Path("data", "metadata.json")
_CHECK = "metadata"
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "dataset_id": str,
    "data_format": str,
    "total_episodes": int,
    "total_steps": int,
    "observation_space": str,
    "action_space": str,
    "minari_version": str,
    "dataset_size": (int, float),
}
_OURS = ("task", "tier", "multi_agent", "behaviour_policies", "collection", "content_hash", "statistics")
_SIZE_SLACK = 0.2, 0.02  # megabytes, and a share: Minari counts the metadata file too, of which there are several sizes


@dataclass(frozen=True)
class Facts:
    """What the metadata state, as far as they can be used.

    Attributes:
        content: the whole file, empty where it cannot be read.
        declared: spaces of observations and actions, by path inside an episode.
        agents: the agents, empty for a set that is not of a team.
        horizon: steps after which an episode is cut off, None where nothing says it.
        team_is_mean: whether the team's reward is stated to be the mean of the agents'.
        pictures: whether pictures are compressed.
        is_ours: whether our code wrote them.
    """

    content: dict[str, Any]
    declared: dict[str, spaces.Space]
    agents: tuple[str, ...]
    horizon: int | None
    team_is_mean: bool
    pictures: bool
    is_ours: bool

    @property
    def has_spaces(self) -> bool:
        """Whether both spaces are declared and can be understood."""
        tops = {path.partition("/")[0] for path in self.declared}
        return tops == {"observations", "actions"}

    @property
    def is_complete(self) -> bool:
        """Whether nothing that our metadata hold is missing."""
        return self.is_ours and all(key in self.content for key in (*_REQUIRED, *_OURS))


def read(folder: Path, report: Report) -> dict[str, Any]:
    """The metadata of the set in `folder`; empty, after a report, where they cannot be read."""
    path = folder / METADATA
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        report.problem(_CHECK, f"{path.name} is not a table of keys")
    except OSError as error:
        report.problem(_CHECK, f"{path.name} cannot be read: {reason(error)}")
    except (ValueError, RecursionError) as error:
        report.problem(_CHECK, f"{path.name} is damaged: {reason(error)}")
    return {}


def check(content: dict[str, Any], dataset_id: str, report: Report) -> Facts:
    """Report what is missing, of the wrong type or contradictory in the metadata of a set."""
    report.fine(_CHECK, "every key is there and has its type")
    for key, kind in _REQUIRED.items() if content else ():
        if key not in content:
            report.problem(_CHECK, f"{key} is missing, which stops Minari from listing any data set")
        elif not isinstance(content[key], kind) or isinstance(content[key], bool):
            report.problem(_CHECK, f"{key} is {_shown(content[key])}")
    if content.get("dataset_id", dataset_id) != dataset_id:
        report.problem(_CHECK, f"it belongs to {_shown(content['dataset_id'])}, but lies where {dataset_id} should be")
    is_ours = "om2p_schema" in content
    if is_ours:
        _check_ours(content, report)
    declared = _spaces(content, report)
    multi_agent = content.get("multi_agent") if is_ours else None
    multi_agent = multi_agent if isinstance(multi_agent, dict) else {}
    agents = _agents(declared)
    stated = multi_agent.get("agents")
    if stated is not None and (not isinstance(stated, list) or sorted(map(str, stated)) != sorted(agents)):
        report.problem(_CHECK, f"multi_agent.agents is {_shown(stated)}, the spaces are of {', '.join(agents)}")
    elif stated:
        agents = tuple(stated)
    horizon = multi_agent.get("horizon") or _step_limit(content)
    return Facts(
        content=content,
        declared=declared,
        agents=agents,
        horizon=horizon if isinstance(horizon, int) else None,
        team_is_mean=str(multi_agent.get("team_reward", "")).startswith("mean"),
        pictures=bool(content.get("jpeg_encoding", True)),
        is_ours=is_ours,
    )


def check_counts(facts: Facts, folder: Path, episodes: int, steps: int | None, report: Report) -> None:
    """Compare what the metadata count with what there is; `steps` is None where not every episode was read."""
    check = "counts"
    found = {"total_episodes": episodes, "total_steps": steps}
    for key, value in found.items():
        stated = facts.content.get(key)
        if value is not None and stated is not None and stated != value:
            report.problem(check, f"{key} is {_shown(stated)}, the file holds {value:,}")
    megabytes = size_of(folder)
    stated = facts.content.get("dataset_size")
    if isinstance(stated, int | float) and not size_fits(stated, megabytes):
        report.problem(
            check, f"dataset_size is {stated:g} MB, the files have {megabytes:.1f}", severity=Severity.WARNING
        )
    report.fine(check, f"{episodes:,} episodes, {megabytes:.1f} MB, as the metadata state")


def size_of(folder: Path) -> float:
    """Megabytes (10^6 bytes) of the data in a set's folder."""
    return sum(path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file()) / 1e6


def size_fits(stated: float, megabytes: float) -> bool:
    """Whether a stated size can be meant for these megabytes."""
    return abs(stated - megabytes) <= _SIZE_SLACK[0] + _SIZE_SLACK[1] * megabytes


def check_statistics(facts: Facts, episodes: Episodes, report: Report) -> None:
    """Compare the figures in our metadata with those of the data."""
    check = "statistics"
    stated, found = facts.content.get("statistics"), metadata.statistics(episodes)
    for path in _differing(stated, found, "statistics"):
        report.problem(check, f"{path} is not that of the data")
    returns = episodes.team_returns
    for index, policy in enumerate(facts.content.get("behaviour_policies") or ()):
        chosen = returns[episodes.policy == index]
        name, count = policy.get("name"), policy.get("episodes")
        if count != len(chosen):
            report.problem(check, f"policy {name!r} is said to have {count} episodes, it has {len(chosen)}")
        elif not math.isclose(policy.get("return_mean", math.nan), chosen.mean(), rel_tol=1e-6, abs_tol=1e-6):
            report.problem(
                check, f"policy {name!r} is said to return {policy.get('return_mean')}, it does {chosen.mean():.6g}"
            )
    report.fine(check, f"return {returns.mean():.1f} ± {returns.std():.1f}, as the metadata state")


def _check_ours(content: dict[str, Any], report: Report) -> None:
    if content["om2p_schema"] != metadata.SCHEMA:
        report.problem(
            _CHECK, f"om2p_schema is {_shown(content['om2p_schema'])}, this version reads {metadata.SCHEMA!r}"
        )
    for key in _OURS:
        if key not in content:
            report.problem(_CHECK, f"{key} is missing")
    policies = content.get("behaviour_policies")
    if isinstance(policies, list) and all(isinstance(policy, dict) for policy in policies):
        counted = sum(policy.get("episodes", 0) for policy in policies)
        if counted != content.get("total_episodes"):
            report.problem(
                _CHECK,
                f"behaviour_policies have {counted} episodes, total_episodes is {content.get('total_episodes')}",
            )
    elif policies is not None:
        report.problem(_CHECK, f"behaviour_policies is {_shown(policies)}")


def _spaces(content: dict[str, Any], report: Report) -> dict[str, spaces.Space]:
    declared: dict[str, spaces.Space] = {}
    for key, prefix in (("observation_space", "observations"), ("action_space", "actions")):
        text = content.get(key)
        if not isinstance(text, str):
            continue
        try:
            declared |= leaf_spaces(prefix, deserialize_space(text))
        except Exception as error:  # Minari raises whatever comes of the text
            report.problem(_CHECK, f"{key} cannot be understood: {reason(error)}")
    return declared


def _agents(declared: dict[str, spaces.Space]) -> tuple[str, ...]:
    names: dict[str, list[str]] = {"observations": [], "actions": []}
    for path in declared:
        top, _, rest = path.partition("/")
        if rest:
            names[top].append(rest.partition("/")[0])
    seen, acting = (list(dict.fromkeys(found)) for found in names.values())
    return tuple(seen) if len(seen) > 1 and sorted(seen) == sorted(acting) else ()


def _step_limit(content: dict[str, Any]) -> int | None:
    text = content.get("env_spec")
    try:
        return EnvSpec.from_json(text).max_episode_steps if isinstance(text, str) else None
    except Exception:  # specs of other versions of gymnasium, and of wrappers that are not installed
        return None


def _differing(stated: Any, found: Any, path: str) -> list[str]:
    """Paths of the figures that differ."""
    if isinstance(found, dict):
        if not isinstance(stated, dict):
            return [path]
        return [name for key in found for name in _differing(stated.get(key), found[key], f"{path}.{key}")]
    same = isinstance(stated, int | float) and np.isclose(stated, found, rtol=1e-6, atol=1e-6)
    return [] if same else [path]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
