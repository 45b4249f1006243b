"""Playing somebody's environment with somebody's policy, both by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from om2p_data.collector import Collector
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.spec import TeamSpec

RANDOM = "random"
NEVER = 100_000  # steps after which an episode without a limit is taken for endless

Policy = Callable[[dict, np.random.Generator], dict]


class Player:
    """An environment and a policy that play numbered episodes; each is a function of the seed and its number.

    Args:
        env: `package.module:factory`.
        policy: `package.module:policy`, or `random`.
        seed: of environment and policy.
        max_steps: episodes are cut off after so many steps.

    Raises:
        UserError: nothing at these names, or not what it should be.
    """

    def __init__(self, env: str, policy: str, seed: int, max_steps: int | None):
        self._seed, self._max_steps = seed, max_steps
        self._collector = made_collector(env, max_steps)
        self._policy = _policy(policy, self._collector)

    @property
    def spec(self) -> TeamSpec:
        return self._collector.spec

    def play(self, numbers: range) -> Episodes:
        """Play the episodes of these numbers.

        Raises:
            UserError: the environment or the policy fails or breaks PettingZoo's rules; says in which episode and step.
        """
        for episode in numbers:
            try:
                self._play(episode)
            except UserError as error:
                raise UserError(f"episode {episode}, {error}") from error
        episodes = self._collector.take()
        assert episodes is not None
        return episodes

    def _play(self, episode: int) -> None:
        collector = self._collector
        env_seed, policy_seed = self._seeds(episode)
        rng = np.random.default_rng(policy_seed)
        if hasattr(self._policy, "reset"):
            called("reset() of the policy", self._policy.reset)  # pyright: ignore[reportFunctionMemberAccess]
        observations, _ = called("reset()", lambda: collector.reset(seed=env_seed))
        steps = 0
        while collector.agents:
            there = {agent: observations[agent] for agent in collector.agents}
            actions = called("the policy", lambda there=there: self._policy(there, rng))
            observations = called("step()", lambda actions=actions: collector.step(actions))[0]
            steps += 1
            if steps == NEVER and collector.agents and self._max_steps is None:
                raise UserError(f"it has not ended after {NEVER:,} steps: --max-steps cuts episodes off")

    def _seeds(self, episode: int) -> tuple[int, int]:
        # 31 bits: more is too much for some environments.
        words = np.random.SeedSequence((self._seed, episode)).generate_state(2)
        return int(words[0] >> 1), int(words[1])


def made_collector(
    env: str, max_steps: int | None = None, render_mode: str | None = None, option: str = "--env"
) -> Collector:
    """A recording environment from `package.module:factory`; turn-based ones are made parallel.

    `option` is what messages call the name.

    Raises:
        UserError: nothing there, no PettingZoo environment, or one that takes no `render_mode` where one is asked for.
    """
    factory = load(env, option)
    make = factory if render_mode is None else lambda: factory(render_mode=render_mode)
    return Collector(called(f"{option} {env}", make), max_steps=max_steps)


def load(name: str, option: str) -> Any:
    """What stands at `package.module:attribute`; the working directory is searched too.

    Raises:
        UserError: malformed, or nothing there.
    """
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise UserError(f"{option} takes package.module:name, not {name!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # an import runs whatever stands in the module
        raise UserError(f"{option} {name} cannot be imported: {type(error).__name__}: {error}") from error
    return found


def _policy(name: str, collector: Collector) -> Policy:
    if name == RANDOM:

        def uniform(observations: dict, rng: np.random.Generator) -> dict:
            there = observations.items()
            return {agent: _uniform(agent, collector.action_space(agent), seen, rng) for agent, seen in there}

        return uniform
    named = load(name, "--policy")
    found: Any = called(f"--policy {name}", named) if isinstance(named, type) else named
    if not callable(found):
        raise UserError(f"--policy {name} is {type(found).__name__}, which cannot be called")
    return cast(Policy, found)


def _uniform(agent: Any, space: spaces.Space, seen: Any, rng: np.random.Generator) -> Any:
    """A uniform action; of the allowed ones, where the observation says which (PettingZoo's `action_mask`)."""
    if isinstance(space, spaces.Discrete):
        mask = seen.get("action_mask") if isinstance(seen, dict) else None
        allowed = np.arange(space.n) if mask is None else np.flatnonzero(mask)
        if not len(allowed):
            raise UserError(f"agent {agent!r} is allowed no action")
        return int(space.start) + int(rng.choice(allowed))
    assert isinstance(space, spaces.Box)
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise UserError(f"agent {agent!r} has actions without bounds: a random policy needs bounds")
    if np.issubdtype(space.dtype, np.integer):
        return rng.integers(space.low, space.high, dtype=space.dtype, endpoint=True)
    return rng.uniform(space.low, space.high).astype(space.dtype)


def called(what: str, function: Callable[[], Any]) -> Any:
    """The result of somebody else's code, whose errors are said in one line that names the place."""
    try:
        return function()
    except UserError:
        raise
    except Exception as error:  # anything may go wrong there
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})" if trace is not None else ""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{what} failed: {text}{place}") from error
