"""Sampling: rows belong together, episodes do not mix, time limits are no ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from om2p_train.batches import Transitions
from om2p_train.streams import SAMPLING, SeedStreams

from .conftest import toy_dataset


def _numbered(terminal):
    """Observation, action and reward of agent n at step t of episode e all spell (e, t, n)."""
    e, t, n = np.meshgrid(np.arange(5), np.arange(4), np.arange(2), indexing="ij")
    obs = (100 * e + 10 * t + n)[..., None]
    return toy_dataset(
        obs, (100 * e + 10 * t + n)[:, :-1, :, None], (100 * e + 10 * t + n)[:, :-1], terminal=terminal, length=3
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_rows_belong_together_and_never_cross_an_episode(terminal):
    batch = Transitions(_numbered(terminal)).sample(SeedStreams([0, 1], SAMPLING), 500)  # K = 2 seeds x 2 agents
    assert batch.obs.shape == (4, 500, 1)
    obs = batch.obs[..., 0]
    torch.testing.assert_close(batch.actions[..., 0], obs)
    torch.testing.assert_close(batch.rewards, obs)
    torch.testing.assert_close(batch.next_obs[..., 0], obs + 10)
    assert (obs[0] + 1 == obs[1]).all(), "agents of one seed see the same rows"
    assert (obs[0] != obs[2]).any(), "seeds see different rows"
    last_step = (obs // 10 % 10) == 2
    assert set(batch.mask[last_step].tolist()) == {0.0 if terminal else 1.0}
    assert set(batch.mask[~last_step].tolist()) == {1.0}


def test_every_transition_is_drawn_about_equally_often():
    batch = Transitions(_numbered(False)).sample(SeedStreams([0], SAMPLING), 30_000)
    _, counts = batch.obs[0].unique(return_counts=True)
    assert len(counts) == 15
    assert (counts - 2000).abs().max() < 6 * np.sqrt(2000)


def test_streams_of_a_seed_do_not_depend_on_its_neighbours():
    alone = SeedStreams([7], SAMPLING).normal(3, 5)
    among = SeedStreams([2, 7], SAMPLING).normal(3, 5)
    torch.testing.assert_close(among[3:], alone, rtol=0, atol=0)
