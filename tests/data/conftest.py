"""A behaviour recipe that trains in seconds, and the folder where its run is kept for all tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from om2p_data import tiers
from om2p_data.behavior import training
from om2p_data.envs.registry import find
from om2p_data.tiers import DataRecipe

# Fresh actors fly away and score 70-100; 135 takes about 400 updates of these small networks.
TINY = {
    "behavior": {
        "num_envs": 32,
        "max_steps": 150_000,
        "segment_steps": 50,
        "hidden": [32, 32],
        "evaluation_episodes": 200,
        "judging_episodes": 400,
        "td3": {"warmup_steps": 1_600, "batch_size": 128},
        "levels": {"medium": 105.0, "expert": 135.0},
    },
    "collection": {"num_envs": 16},
}


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from a second thread and lose much where cores are shared."""
    with single_thread():
        yield


@pytest.fixture(scope="session")
def tiny() -> DataRecipe:
    return tiers.load_recipe(find("cn"), None, TINY)


@pytest.fixture(scope="session")
def shared_home(tiny: DataRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the behaviour run of the tiny recipe and seed 0 lies, trained up to the expert level."""
    home = tmp_path_factory.mktemp("behaviour")
    with single_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OM2P_HOME", str(home))
        patch.setattr(training, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
        training.train(find("cn"), tiny.behavior, seed=0, progress=False)
    return home


@pytest.fixture
def home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OM2P_HOME", str(shared_home))
    return shared_home
