"""Policies that collect data, and their files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from om2p_data.behavior.policy import GaussianNoise, TeamActor, UniformPolicy, between, load_actor, one_torch_thread
from om2p_data.envs.registry import find
from om2p_data.errors import UserError
from om2p_data.stacked import Activation

CN = find("cn")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[TeamActor, Path]:
    actor = TeamActor(3, 18, 2, (8,), torch.Generator().manual_seed(0), activation=Activation.TANH)
    path = tmp_path / "policy.safetensors"
    actor.save(path, CN, {"level": "medium", "return_mean": 1.5})
    return actor, path


def test_a_policy_comes_back_from_its_file_in_half_precision(saved: tuple[TeamActor, Path]) -> None:
    actor, path = saved
    before = actor.content_hash()
    found, card = load_actor(path, CN)
    obs = np.random.default_rng(0).standard_normal((7, 3, 18), dtype=np.float32)
    rng = np.random.default_rng(0)
    actions = found.act(obs, rng)
    np.testing.assert_array_equal(actions, actor.rounded().act(obs, rng), strict=True)
    np.testing.assert_allclose(actions, actor.act(obs, rng), atol=2e-3)
    assert (actions.shape, actions.dtype) == ((7, 3, 2), np.float32)
    np.testing.assert_allclose(actions[2, 1], found(torch.from_numpy(obs[2])[:, None])[1, 0].detach(), atol=1e-6)
    assert card == {
        "task": "cooperative-navigation",
        "hidden": [8],
        "activation": "tanh",
        "hash": actor.rounded().content_hash(),
        "level": "medium",
        "return_mean": 1.5,
    }
    assert actor.content_hash() == before != card["hash"]  # rounding is a copy's
    assert actor.rounded().rounded().content_hash() == card["hash"]
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}


def test_hashes_follow_the_weights(saved: tuple[TeamActor, Path]) -> None:
    actor, _ = saved
    hashes = {actor.content_hash()}
    for parameter in actor.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1].add_(1e-3)
        hashes.add(actor.content_hash())
    assert len(hashes) == 1 + len(list(actor.parameters()))


def test_a_team_between_two_has_weights_between_theirs() -> None:
    first, second = (TeamActor(3, 5, 2, (8, 7), torch.Generator().manual_seed(seed)) for seed in (0, 1))
    kept = first.content_hash(), second.content_hash()
    for share in (0.0, 0.25, 1.0):
        found = dict(between(first, second, share).named_parameters())
        for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(found[name], (1 - share) * one + share * other)
    assert between(first, second, 1.0).content_hash() == kept[1]
    assert (first.content_hash(), second.content_hash()) == kept


def test_torch_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with contextlib.suppress(KeyError), one_torch_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    with safe_open(path, framework="pt") as file:
        card = file.metadata()
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata=card)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot read the policy .*No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "cannot read the policy"),
        (lambda path: path.write_bytes(b""), "cannot read the policy"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), "cannot read the policy"),
        (lambda path: save_file({"a": torch.zeros(1)}, path, metadata={"card": "{}"}), "cannot read the policy"),
        (
            lambda path: rewrite(path, lambda w: w.pop("net.output_layer.bias")),
            r"cannot read the policy .*output_layer\.bias",
        ),
        (
            lambda path: rewrite(path, lambda w: w["net.output_layer.bias"].add_(1e-2)),
            "do not match their recorded hash: the file is damaged",
        ),
    ],
)
def test_a_damaged_policy_is_named_in_one_line(saved: tuple[TeamActor, Path], damage, message: str) -> None:
    _, path = saved
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        load_actor(path, CN)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_of_another_task_is_refused(saved: tuple[TeamActor, Path]) -> None:
    with pytest.raises(UserError, match=r"holds a policy for cooperative-navigation, not for world$"):
        load_actor(saved[1], find("world"))


def test_noise_has_its_size_and_stays_in_bounds() -> None:
    class Still:
        def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.full((len(obs), 3, 2), 0.9, np.float32)

    rng = np.random.default_rng(0)
    actions = GaussianNoise(Still(), 0.2).act(np.zeros((50_000, 3, 18), np.float32), rng)
    assert (actions.dtype, actions.max()) == (np.float32, 1.0)
    free = actions[actions < 0.9]  # the lower half, which no bound cuts
    assert len(free) / actions.size == pytest.approx(0.5, abs=0.01)
    assert np.sqrt(np.mean((free - 0.9) ** 2)) == pytest.approx(0.2, rel=0.02)
    assert (actions == 1.0).mean() == pytest.approx(0.3085, abs=0.01)  # P(N > 0.5)


def test_uniform_policy() -> None:
    actions = UniformPolicy(CN).act(np.zeros((50_000, 3, 18), np.float32), np.random.default_rng(0))
    assert (actions.shape, actions.dtype) == ((50_000, 3, 2), np.float32)
    assert (actions.min() >= -1, actions.max() <= 1) == (True, True)
    np.testing.assert_allclose(np.quantile(actions, [0.1, 0.5, 0.9]), [-0.8, 0, 0.8], atol=0.02)
