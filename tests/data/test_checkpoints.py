"""Checkpoints: what goes in comes out, to the bit, and a damaged file is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from om2p_data import checkpoints, storage, tensor_file
from om2p_data.errors import UserError


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected
        assert type(found) is type(expected)


def test_nested_states_come_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    shared = torch.arange(6.0).view(2, 3)
    state = {
        "tensors": {"a.b": shared, "view": shared.T, "part": shared[:, 1], "again": shared},
        "kinds": [torch.tensor(3), torch.tensor([True, False]), torch.rand(2, dtype=torch.float64), torch.empty(0, 4)],
        "deep": [{"x": [[torch.ones(1)], 5]}, None, "text", 2**70, 0.1, True],
        "tensor": {"tensor": "no tensor", "items": {"items": 1}},
        "empty": [{}, []],
    }
    checkpoints.save(path, state)
    assert_same(checkpoints.load(path), state)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_what_is_saved_does_not_change_with_the_program(tmp_path: Path) -> None:
    path, weight = tmp_path / "checkpoint.safetensors", torch.zeros(3)
    checkpoints.save(path, {"weight": weight})
    weight += 1
    assert checkpoints.load(path)["weight"].tolist() == [0, 0, 0]
    checkpoints.save(path, {"weight": weight})
    assert checkpoints.load(path)["weight"].tolist() == [1, 1, 1]


class Learner:
    """A small net, its optimiser and its noise."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        self.net = nn.Linear(3, 2)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 0.05, amsgrad=True)
        self.generator = torch.Generator().manual_seed(seed)

    def learn(self, steps: int) -> Tensor:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.net(torch.randn(8, 3, generator=self.generator)).square().mean().backward()
            self.optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in self.net.parameters()])


def test_a_learner_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Weights, the optimiser's moments and step count, and the state of the noise: each alters the next weights."""
    path, first = tmp_path / "checkpoint.safetensors", Learner(0)
    first.learn(5)
    state = {
        "net": first.net.state_dict(),
        "optimizer": checkpoints.optimizer_state(first.optimizer),
        "generator": first.generator.get_state(),
    }
    checkpoints.save(path, state)
    expected = first.learn(5)
    found = checkpoints.load(path)
    for left_out in (None, "net", "optimizer", "generator"):
        second = Learner(1)
        if left_out != "net":
            second.net.load_state_dict(found["net"])
        if left_out != "optimizer":
            checkpoints.restore_optimizer(second.optimizer, found["optimizer"])
        if left_out != "generator":
            second.generator.set_state(found["generator"])
        assert torch.equal(second.learn(5), expected) == (left_out is None), left_out


def test_a_fresh_optimiser_comes_back_fresh(tmp_path: Path) -> None:
    path, learner = tmp_path / "checkpoint.safetensors", Learner(0)
    checkpoints.save(path, {"optimizer": checkpoints.optimizer_state(learner.optimizer)})
    other = Learner(0)
    checkpoints.restore_optimizer(other.optimizer, checkpoints.load(path)["optimizer"])
    assert torch.equal(other.learn(3), learner.learn(3))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: save_file({"a": torch.zeros(1)}, path),
        lambda path: tensor_file.write(path, {"a": torch.zeros(1)}, {}),
        lambda path: tensor_file.write(path, {"a": torch.zeros(1)}, {"state": "{"}),
        lambda path: tensor_file.write(path, {"b": torch.zeros(1)}, {"state": json.dumps({"tensor": "a"})}),
        lambda path: tensor_file.write(path, {"b": torch.zeros(1)}, {"state": json.dumps({"no items": 1})}),
    ],
)
def test_a_damaged_file_is_named_in_one_line(damage: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.save(path, {"a": torch.zeros(4)})
    damage(path)
    with pytest.raises(UserError) as caught:
        checkpoints.load(path)
    assert str(caught.value).startswith(f"checkpoint {path} cannot be read: ")
    assert str(caught.value).endswith("; delete it to start anew")
    assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.save(path, {"a": torch.zeros(4)})

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(path, {"a": torch.ones(4)})
    assert checkpoints.load(path)["a"].tolist() == [0, 0, 0, 0]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoints.save(tmp_path / "missing" / "checkpoint.safetensors", {"a": torch.zeros(4)})
