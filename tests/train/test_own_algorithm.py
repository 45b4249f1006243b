"""The worked example of docs/extend.md is run as it stands there."""

from __future__ import annotations

import pytest
import torch

from om2p_data.errors import UserError
from om2p_train import algorithms, config
from om2p_train.batches import Transitions
from om2p_train.learner import Learner
from om2p_train.streams import INITIALISATION, SAMPLING, SeedStreams
from om2p_train.team import Team

from ..docs.pages import file_in


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The documented file and recipe in a working directory of their own."""
    for name in ("td3_bc.py", "td3_bc.toml"):
        (tmp_path / name).write_text(file_in("docs/extend.md", name), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "td3_bc.toml"


def test_the_documented_algorithm_trains(example, random_dataset):
    recipe = config.load(example, "toy", None, settings=["optimizer.batch_size=16", "network.hidden=[16]"])
    algorithm = algorithms.find(recipe.algorithm)(
        Team.of(random_dataset.environment.spec), recipe.network, recipe.options, SeedStreams([0, 1], INITIALISATION)
    )
    data = Transitions(random_dataset)
    learner = Learner(algorithm, data, SeedStreams([0, 1], SAMPLING), recipe.optimizer, 20)
    before = [parameter.detach().clone() for parameter in algorithm.parameters()]
    losses = [learner.update() for _ in range(20)]
    assert all(torch.isfinite(value).all() for loss in losses for value in loss.values())
    assert all((old != new).any() for old, new in zip(before, algorithm.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("td3_bc:TD3BCOptions", "algorithm td3_bc:TD3BCOptions is no subclass of om2p_train.algorithms.Algorithm"),
        ("td3_bc:Nothing", "algorithm td3_bc:Nothing cannot be imported: AttributeError"),
        ("no_such_file:Thing", "algorithm no_such_file:Thing cannot be imported: ModuleNotFoundError"),
        ("om2", "unknown algorithm 'om2': did you mean 'om2p'"),
    ],
)
def test_what_is_no_algorithm_is_refused_in_one_line(name, message, example):
    with pytest.raises(UserError) as caught:
        algorithms.find(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
