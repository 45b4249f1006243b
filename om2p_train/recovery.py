"""Somebody's environment, made anew from its description in a data set or a policy file.

Such files come from anywhere, and making an environment calls what they name. So only what can be an environment is
called: a class of Gymnasium, or a factory that is no part of Python itself.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from om2p_data.envs.adapters import FactoryTeam
from om2p_data.errors import UserError
from om2p_data.playing import called
from om2p_data.spec import EnvironmentCard, TeamSpec


def recover(environment: EnvironmentCard, render_mode: str | None = None) -> gymnasium.Env:
    """The environment with Dict spaces, one space an agent.

    Args:
        environment: the card that describes it.
        render_mode: None or "rgb_array".

    Raises:
        UserError: there is no description, it cannot be made here, or its team is not the card's.
    """
    name, described = environment.name, environment.env_spec
    if described is None:
        raise UserError(f"{name} cannot be played: its data do not say how to make it")
    try:
        _check(described)
        env = called("making it", lambda: gymnasium.make(described, render_mode=render_mode, disable_env_checker=True))
    except UserError as error:
        raise UserError(f"{name} cannot be played: {error}") from error
    spec = environment.spec
    found = TeamSpec.of_spaces(spec.agents, env.observation_space, env.action_space, spec.state_dim)
    if found.sizes != spec.sizes:
        raise UserError(f"{name} has changed: its team is {_sizes(found)} now, and {_sizes(spec)} in the file")
    return env


def _check(described: EnvSpec) -> None:
    kinds = [(described.entry_point, gymnasium.Env)]
    kinds += [(wrapper.entry_point, gymnasium.Wrapper) for wrapper in described.additional_wrappers]
    for entry_point, kind in kinds:
        name = _foreign(entry_point)
        found = called(f"importing {name}", lambda name=name: load_env_creator(name))
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise UserError(f"{name} is no {kind.__name__} of Gymnasium")
        if found is FactoryTeam:
            _foreign(described.kwargs.get("factory"))


def _foreign(name: Any) -> str:
    if not isinstance(name, str) or re.split(r"[.:]", name)[0] in sys.stdlib_module_names:
        raise UserError(f"{name!r} names no environment")
    return name


def _sizes(spec: TeamSpec) -> str:
    return f"{', '.join(spec.agents)} with observations {spec.obs_dims} and actions {spec.act_dims}"
