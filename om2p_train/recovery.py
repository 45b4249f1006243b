"""Somebody's environment, made anew from its description in a data set or a policy file.

Such files come from anywhere, and making an environment calls what they name. So only what can be an environment is
called: a class of Gymnasium, or a factory that is no part of Python itself.
"""

from __future__ import annotations

import re
import sys
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

from om2p_data.conversion import observation_vector, own_action
from om2p_data.envs.adapters import FactoryTeam
from om2p_data.errors import UserError
from om2p_data.inspect.pictures import Act, play
from om2p_data.playing import NEVER, called
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


def film(
    environment: EnvironmentCard, act: Act, *, seed: int, max_steps: int | None = None
) -> tuple[list[np.ndarray], float]:
    """Play one episode of anybody's environment and draw it.

    Args:
        environment: the card that describes it.
        act: observations by agent -> actions by agent, choices counted from 0.
        seed: of the episode.
        max_steps: stop after this many steps; by default the episode is played to its end.

    Returns:
        Pictures uint8 [height, width, 3], the start included, and the team return of the steps played.

    Raises:
        UserError: it cannot be made here, or does not draw itself.
    """
    if environment.task is not None:
        return play(environment.task.name, act, seed=seed, max_steps=max_steps)
    env, name = recover(environment, render_mode="rgb_array"), environment.name
    agents, does, sees = environment.spec.agents, cast(spaces.Dict, env.action_space), env.observation_space
    frames, team_return, over = [], 0.0, False
    try:
        obs, _ = called(f"{name}: reset()", lambda: env.reset(seed=seed))
        frames.append(_picture(name, env))
        while not over and len(frames) <= (max_steps or NEVER):
            flat = {agent: observation_vector(cast(spaces.Dict, sees)[agent], obs[agent]) for agent in agents}
            own = {agent: own_action(does[agent], action) for agent, action in act(flat).items()}
            obs, reward, terminated, truncated, _ = called(f"{name}: step()", lambda own=own: env.step(own))
            team_return += float(reward)
            over = bool(terminated or truncated)
            frames.append(_picture(name, env))
    finally:
        env.close()
    return frames, team_return


def _picture(name: str, env: gymnasium.Env) -> np.ndarray:
    frame: Any = called(f"{name}: render()", env.render)
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        raise UserError(f"{name} cannot be drawn: render() gives no picture, though render_mode is 'rgb_array'")
    return frame


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
