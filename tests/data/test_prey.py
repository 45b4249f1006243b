"""The frozen prey: its arithmetic, its files, its training, and where it puts random predators."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from om2p_data import tiers
from om2p_data.behavior import prey as prey_training
from om2p_data.behavior.policy import TeamActor, UniformPolicy
from om2p_data.behavior.prey import PreyConfig, train_prey
from om2p_data.envs import NetworkPrey, make
from om2p_data.envs.particle.prey import bundled_prey, load_prey
from om2p_data.envs.registry import Task, find
from om2p_data.envs.vector import available_threads
from om2p_data.errors import UserError
from om2p_data.rollout import team_returns

PP = find("pp")
HIDDEN = 24


def weights(seed: int = 0, seen: int = 14) -> dict[str, np.ndarray]:
    """Of a network whose actions are neither all small nor all saturated."""
    rng = np.random.default_rng(seed)
    widths = [seen, HIDDEN, HIDDEN, 2]
    found = {}
    for layer, (rows, columns) in enumerate(itertools.pairwise(widths), 1):
        found[f"weight_{layer}"] = rng.normal(0, 1.2 / np.sqrt(rows), (rows, columns)).astype(np.float32)
        found[f"bias_{layer}"] = rng.normal(0, 0.3, columns).astype(np.float32)
    return found


def plain(arrays: dict[str, np.ndarray], obs: np.ndarray) -> np.ndarray:
    """The same network in float64 from the stored halves."""
    x = obs.astype(np.float64)
    for layer in (1, 2, 3):
        half = [arrays[f"{kind}_{layer}"].astype(np.float16).astype(np.float64) for kind in ("weight", "bias")]
        x = x @ half[0] + half[1]
        x = np.tanh(x) if layer == 3 else np.maximum(x, 0)
    return x


def observations(count: int, seen: int = 14) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (count, seen)).astype(np.float32)


# The network


@pytest.mark.parametrize("seen", [14, 22])
def test_a_prey_is_a_network_of_two_relu_layers_and_tanh(seen: int) -> None:
    arrays, obs = weights(seen=seen), observations(500, seen)
    actions = NetworkPrey(arrays, "mine").act(obs)
    assert (actions.shape, actions.dtype) == ((500, 2), np.float32)
    np.testing.assert_allclose(actions, plain(arrays, obs), atol=2e-6)
    assert np.abs(actions).mean() > 0.2
    assert (np.abs(actions) < 0.9).mean() > 0.3


def test_what_a_prey_does_depends_neither_on_the_batch_nor_on_threads() -> None:
    prey, obs = NetworkPrey(weights(), "mine"), observations(3_001)
    numba.set_num_threads(1)
    whole = prey.act(obs)
    alone = np.concatenate([prey.act(obs[i : i + 1]) for i in range(200)])
    np.testing.assert_array_equal(alone, whole[:200])
    strided = np.repeat(obs, 2, axis=1)[:, ::2]
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(prey.act(strided), whole)
    numba.set_num_threads(min(2, available_threads()))
    np.testing.assert_array_equal(prey.act(obs), whole)


def test_a_prey_of_another_world_is_refused() -> None:
    with pytest.raises(UserError, match=r"^prey world-\w+ sees 22 numbers, not 14$"):
        make("pp", prey=bundled_prey("world")).step(np.zeros((1, 3, 2)))


# Files


def test_a_prey_comes_back_from_its_file(tmp_path: Path) -> None:
    path, prey = tmp_path / "prey.safetensors", NetworkPrey(weights(), "mine")
    prey.save(path, {"seed": 3, "identity": "not this"})
    found, card = load_prey(path, "mine")
    assert card == {"seed": 3, "identity": prey.identity}
    assert found.identity == prey.identity
    np.testing.assert_array_equal(found.act(observations(50)), prey.act(observations(50)))
    assert sum(value.nbytes for value in load_file(path).values()) == 2 * sum(v.size for v in weights().values())


def test_identity_follows_the_weights() -> None:
    identity = NetworkPrey(weights(), "mine").identity
    assert re.fullmatch(r"mine-[0-9a-f]{12}", identity)
    assert NetworkPrey(weights(), "mine").identity == identity
    assert NetworkPrey(weights(), "yours").identity == "yours" + identity.removeprefix("mine")
    for key, value in weights().items():
        changed = value.copy()
        changed.flat[-1] += 0.01
        assert NetworkPrey(weights() | {key: changed}, "mine").identity != identity, key
    # The identity is of what is kept: halves.
    fine = {key: value * (1 + 1e-6) for key, value in weights().items()}
    assert NetworkPrey(fine, "mine").identity == identity


def _rewrite(path: Path, *, card: bool = True, leave_out: str = "", add: float = 0.0) -> None:
    tensors = load_file(path)
    tensors.pop(leave_out, None)
    tensors["bias_3"] = tensors["bias_3"] + np.float16(add)
    _, facts = load_prey(path, "mine")
    save_file(tensors, path, metadata={"card": json.dumps(facts)} if card else None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read: .*No such file"),
        (lambda path: path.write_bytes(b""), "cannot be read: "),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "cannot be read: "),
        (lambda path: _rewrite(path, card=False), "cannot be read: "),
        (lambda path: _rewrite(path, leave_out="weight_2"), "cannot be read: 'weight_2'"),
        (lambda path: _rewrite(path, add=0.1), r"is damaged: it is mine-\w{12}, its card says mine-\w{12}$"),
    ],
)
def test_a_damaged_prey_is_named_in_one_line(damage, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prey.safetensors"
    NetworkPrey(weights(), "mine").save(path, {})
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        load_prey(path, "mine")
    assert str(caught.value).startswith(f"prey {path} ")
    assert "\n" not in str(caught.value)


# The bundled ones


@pytest.mark.parametrize(("name", "published"), [("pp", -4.1), ("world", -6.8)])
def test_random_predators_score_what_is_published(name: str, published: float) -> None:
    """Over 20,000 episodes the mean is known to 0.09 and 0.04."""
    returns = team_returns(UniformPolicy(find(name)), make(name, 20_000), seed=77)
    assert returns.mean() == pytest.approx(published, abs=0.4)


@pytest.mark.parametrize("name", ["predator-prey", "world"])
def test_bundled_preys_are_named_in_their_worlds(name: str) -> None:
    prey = bundled_prey(name)
    assert re.fullmatch(rf"{name}-[0-9a-f]{{12}}", prey.identity)
    assert make(name).prey_identity == prey.identity
    assert make("cn").prey_identity is None


# Training

AIM = -9.0
TASK = dataclasses.replace(PP, returns=dataclasses.replace(PP.returns, reference_random=AIM))
QUICK = {
    "prey": {
        "num_envs": 32,
        "min_steps": 0,
        "max_steps": 20_000,
        "segment_steps": 50,
        "evaluation_episodes": 1_000,
        "hidden": [16, 16],
        "td3": {"warmup_steps": 1_600, "batch_size": 64},
    }
}


def quick(**changes: object) -> PreyConfig:
    found = tiers.load_recipe(PP, None, QUICK).prey
    assert found is not None
    return found.model_copy(update=changes)


def returns_against(prey: NetworkPrey, seed: int) -> np.ndarray:
    return team_returns(UniformPolicy(PP), make("pp", 4_000, prey=prey), seed)


def test_a_trained_prey_lands_on_the_aim(tmp_path: Path) -> None:
    """Random predators score -5 against this one after 3,200 steps and -11 after 6,400."""
    path = tmp_path / "prey.safetensors"
    card = train_prey(TASK, quick(), seed=1, path=path, progress=False)
    prey, read = load_prey(path, PP.name)
    assert read == card
    assert prey.identity == card["identity"]
    assert card["random_return_mean"] == pytest.approx(AIM, abs=0.15)
    assert (card["task"], card["seed"], card["episodes"]) == (PP.name, 1, 1_000)
    assert card["recipe"] == quick().model_dump(mode="json")
    assert 0 < card["env_steps"] <= 20_000
    fresh = returns_against(prey, seed=5)
    error = fresh.std() * np.hypot(1 / np.sqrt(1_000), 1 / np.sqrt(4_000))
    assert abs(fresh.mean() - AIM) < 0.15 + 4 * error
    again = train_prey(TASK, quick(), seed=1, path=path, progress=False)
    other = train_prey(TASK, quick(), seed=0, path=path, progress=False)
    assert again["identity"] == card["identity"] != other["identity"]


def staged(monkeypatch: pytest.MonkeyPatch, returns: list[float]) -> None:
    """Segments whose preys let random predators score `returns`, and on the line between two what lies between."""

    def segments(*_: object) -> Iterator[tuple[int, TeamActor]]:
        for number, value in enumerate(returns, 1):
            actor = TeamActor(1, 14, 2, (4, 4))
            actor.net.output_layer.bias.data.fill_(value)  # pyright: ignore
            yield 100 * number, actor

    def random_returns(_task: Task, actor: TeamActor, *_: object) -> np.ndarray:
        return np.full(10, actor.net.output_layer.bias.data[0, 0, 0].item())  # pyright: ignore

    monkeypatch.setattr(prey_training, "_segments", segments)
    monkeypatch.setattr(prey_training, "_random_returns", random_returns)


@pytest.mark.parametrize(
    ("returns", "crossing"),
    [
        ([-4.0, -12.0], 2),
        ([-12.0, -12.0, -4.0, -12.0], 4),  # it begins as no prey at all
        ([-4.0, -12.0, -12.0, -4.0, -10.0], 5),  # crossed before `min_steps`
    ],
)
def test_a_prey_is_frozen_where_the_aim_is_crossed_from_above(
    returns: list[float], crossing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(monkeypatch, returns)
    config = quick(min_steps=0 if len(returns) == 2 else 300)
    card = train_prey(TASK, config, seed=0, path=tmp_path / "prey.safetensors", progress=False)
    assert card["env_steps"] == 100 * crossing
    assert card["random_return_mean"] == pytest.approx(AIM, abs=0.15)


@pytest.mark.parametrize("returns", [[-4.0, -5.0], [-12.0, -12.0]])
def test_a_prey_that_never_crosses_the_aim(
    returns: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(monkeypatch, returns)
    with pytest.raises(UserError, match=r"^random predators never fell to -9\.0 within prey\.max_steps = 20000$"):
        train_prey(TASK, quick(), seed=0, path=tmp_path / "prey.safetensors", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_leap_over_the_aim_that_no_line_bridges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged(monkeypatch, [-4.0, -12.0])
    leap = prey_training._random_returns
    monkeypatch.setattr(prey_training, "_random_returns", lambda *given: np.where(leap(*given) > -7, -4.0, -12.0))
    with pytest.raises(UserError, match=r"no prey between two segments .* raise prey\.evaluation_episodes"):
        train_prey(TASK, quick(), seed=0, path=tmp_path / "prey.safetensors", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_task_without_prey_trains_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cooperative-navigation has no prey: valid: predator-prey, world$"):
        train_prey(find("cn"), quick(), seed=0, path=tmp_path / "prey.safetensors", progress=False)
