"""The replay memory: n-step batches and whole episodes against step-by-step references, and its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from om2p_data.behavior.replay import Replay
from om2p_data.envs.registry import find

TOY = dataclasses.replace(find("cn"), obs_dim=5, state_dim=4)  # 3 agents, 2 actions
WORLDS = 4


class Row(NamedTuple):
    """One step of all worlds, as `Replay.add` takes it."""

    obs: np.ndarray
    state: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_obs: np.ndarray
    next_state: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def marked_rows(steps: int, worlds: int, seed: int) -> list[Row]:
    """Random rewards and ends; every observation, state and action says its step, world and agent."""
    rng = np.random.default_rng(seed)
    rows = []
    for t in range(steps):
        place = np.zeros((worlds, 3, 5), np.float32)
        place[..., 0] = t
        place[..., 1] = np.arange(worlds)[:, None]
        place[..., 2] = np.arange(3)
        after = place.copy()
        after[..., 3] = 1  # what the step led to, as against a first observation
        over = np.repeat(rng.random((worlds, 1)) < 0.2, 3, 1)
        terminated = over & (rng.random((worlds, 1)) < 0.5)
        rows.append(
            Row(
                obs=place,
                state=place[:, 0, :4],
                actions=place[..., :2],
                rewards=rng.standard_normal((worlds, 3)).astype(np.float32),
                next_obs=after,
                next_state=after[:, 0, :4],
                terminated=terminated,
                truncated=over & ~terminated,
            )
        )
    return rows


def filled(rows: list[Row], capacity: int) -> Replay:
    memory = Replay(TOY, len(rows[0].obs), capacity)
    for row in rows:
        memory.add(*row)
    return memory


def n_step_reference(rows: list[Row], t: int, world: int, n_step: int, gamma: float) -> tuple[float, float, int]:
    """Reward, discount and last step of one transition, one step after the other."""
    reward = 0.0
    for k in range(n_step):
        row = rows[t + k]
        reward += gamma**k * float(row.rewards[world].mean())
        if row.terminated[world].any():
            return reward, 0.0, t + k
        if row.truncated[world].any():
            return reward, gamma ** (k + 1), t + k
    return reward, gamma**n_step, t + n_step - 1


@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize(("steps", "capacity"), [(20, 30), (30, 30), (71, 30)])
def test_n_step_batches_equal_a_step_by_step_reference(n_step: int, steps: int, capacity: int) -> None:
    rows = marked_rows(steps, worlds=6, seed=steps)
    memory = filled(rows, capacity)
    assert len(memory) == memory.steps == steps
    batch = memory.sample(np.random.default_rng(0), 4_000, n_step, gamma=0.9)
    assert [tuple(x.shape) for x in batch] == [
        (3, 4000, 5), (4000, 4), (3, 4000, 2), (4000,), (3, 4000, 5), (4000, 4), (4000,)
    ]  # fmt: skip
    assert {x.dtype for x in batch} == {torch.float32}
    discounts = set()
    for i in range(4_000):
        t, world = int(batch.state[i, 0]), int(batch.state[i, 1])
        reward, discount, last = n_step_reference(rows, t, world, n_step, 0.9)
        assert batch.reward[i].item() == pytest.approx(reward, abs=1e-5)
        assert batch.discount[i].item() == pytest.approx(discount, abs=1e-6)
        assert batch.obs[:, i].tolist() == rows[t].obs[world].tolist()
        assert batch.actions[:, i].tolist() == rows[t].actions[world].tolist()
        assert batch.next_obs[:, i].tolist() == rows[last].next_obs[world].tolist()
        assert batch.next_state[i].tolist() == rows[last].next_state[world].tolist()
        discounts.add(round(discount, 6))
    assert discounts == {0.0, *(round(0.9 ** (k + 1), 6) for k in range(n_step))}
    # Every step that n - 1 others follow is drawn, and about equally often.
    drawn, counts = np.unique(batch.state[:, 0].numpy(), return_counts=True)
    assert drawn.tolist() == list(range(steps - n_step + 1))
    assert counts.min() > 0.5 * counts.mean()
    assert set(batch.state[:, 1].tolist()) == set(range(6))


def test_batches_repeat_with_the_seed() -> None:
    memory = filled(marked_rows(20, worlds=3, seed=0), 30)
    one, same, other = (memory.sample(np.random.default_rng(seed), 50, 3, 0.9) for seed in (1, 1, 2))
    assert torch.equal(one.state, same.state)
    assert not torch.equal(one.state, other.state)


@pytest.mark.parametrize(("steps", "capacity"), [(30, 40), (40, 40), (95, 20)])
def test_memory_hands_out_whole_episodes_only(steps: int, capacity: int) -> None:
    rows = marked_rows(steps, worlds=WORLDS, seed=steps)
    found = filled(rows, capacity).episodes(seed=3)
    expected = []  # world, first and last step
    for world in range(WORLDS):
        ends = [t for t, row in enumerate(rows) if row.terminated[world, 0] or row.truncated[world, 0]]
        expected += [(world, start, end) for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]
    expected.sort(key=lambda episode: (episode[2], episode[0]))
    assert len(expected) > 5
    places = [
        (int(found.obs[row, 0, 1]), int(found.obs[row, 0, 0]), int(found.obs[row + length - 1, 0, 0]))
        for row, length in zip(found.episode_start, found.lengths, strict=True)
    ]
    assert places == expected
    step, world = found.actions[:, 0, 0].astype(int), found.actions[:, 0, 1].astype(int)
    np.testing.assert_array_equal(
        found.rewards, np.stack([rows[t].rewards[e] for t, e in zip(step, world, strict=True)])
    )
    np.testing.assert_array_equal(found.terminated, [rows[t].terminated[e] for t, e in zip(step, world, strict=True)])
    last = np.cumsum(found.lengths) - 1
    np.testing.assert_array_equal(
        found.obs[found.obs_index[last] + 1][:, 0, [0, 1, 3]], [[t, e, 1] for e, _, t in expected]
    )
    assert set(found.seed) == {3}


# Files


def hash_of(memory: Replay) -> str:
    return memory.episodes(seed=0).content_hash()


def restored(folder: Path, steps: int, capacity: int = 100) -> Replay:
    memory = Replay(TOY, WORLDS, capacity)
    memory.restore(folder, steps)
    return memory


def test_a_memory_that_is_saved_bit_by_bit_comes_back_whole(tmp_path: Path) -> None:
    rows = marked_rows(90, WORLDS, seed=0)
    memory, folder = Replay(TOY, WORLDS, 20), tmp_path / "collected"
    for t, row in enumerate(rows):
        memory.add(*row)
        if t in (9, 10, 55):
            memory.save(folder)
            assert hash_of(restored(folder, t + 1)) == hash_of(memory)
    memory.save(folder)
    memory.save(folder)  # nothing new
    found = restored(folder, 90, capacity=7)  # smaller than what it must hold
    assert found.steps == 90
    assert hash_of(found) == hash_of(filled(rows, 90))
    one, other = (memory.sample(np.random.default_rng(0), 500, 3, 0.9) for memory in (found, filled(rows, 90)))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert hash_of(restored(folder, 31)) == hash_of(filled(rows[:31], 90))


@pytest.mark.parametrize("resumed", [False, True])
def test_saving_writes_only_what_is_new(resumed: bool, tmp_path: Path) -> None:
    rows = marked_rows(40, WORLDS, seed=0)
    memory = filled(rows[:30], 100)
    memory.save(tmp_path)
    if resumed:
        memory = restored(tmp_path, 30)
    marks = {path: path.stat().st_size for path in tmp_path.iterdir()}
    for path in marks:  # what was written once is left alone, whatever became of it
        with path.open("r+b") as file:
            file.write(b"\xff")
    for row in rows[30:]:
        memory.add(*row)
    memory.save(tmp_path)
    assert len(marks) == 8
    for path, size in marks.items():
        assert path.read_bytes()[:1] == b"\xff"
        assert path.stat().st_size == size * 40 // 30


def test_what_a_kill_left_behind_the_last_checkpoint_does_not_count(tmp_path: Path) -> None:
    """A run that goes on from 20 steps finds files of 35, and collects something else."""
    rows, others = marked_rows(35, WORLDS, seed=0), marked_rows(50, WORLDS, seed=1)
    filled(rows, 100).save(tmp_path)
    memory = restored(tmp_path, 20)
    assert hash_of(memory) == hash_of(filled(rows[:20], 100))
    for row in others[20:28]:
        memory.add(*row)
    memory.save(tmp_path)
    assert hash_of(restored(tmp_path, 28)) == hash_of(filled([*rows[:20], *others[20:28]], 100))
    for row in others[28:]:
        memory.add(*row)
    memory.save(tmp_path)
    assert hash_of(restored(tmp_path, 50)) == hash_of(filled([*rows[:20], *others[20:]], 100))


def test_a_new_memory_starts_new_files(tmp_path: Path) -> None:
    filled(marked_rows(35, WORLDS, seed=0), 100).save(tmp_path)
    rows = marked_rows(10, WORLDS, seed=1)
    filled(rows, 100).save(tmp_path)
    assert hash_of(restored(tmp_path, 10)) == hash_of(filled(rows, 100))


def test_files_are_cut_to_the_steps_that_count(tmp_path: Path) -> None:
    rows = marked_rows(60, WORLDS, seed=0)
    filled(rows, 100).save(tmp_path)
    whole = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    Replay(TOY, WORLDS, 1).cut_files(tmp_path, 24)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        name: size * 24 // 60 for name, size in whole.items()
    }
    assert hash_of(restored(tmp_path, 24)) == hash_of(filled(rows[:24], 100))
    with pytest.raises(ValueError, match=r"\.bin in .* is too short$"):
        restored(tmp_path, 25)


@pytest.mark.parametrize("name", ["obs", "rewards", "truncated"])
def test_missing_and_short_files_are_named(name: str, tmp_path: Path) -> None:
    filled(marked_rows(30, WORLDS, seed=0), 100).save(tmp_path)
    path = tmp_path / f"{name}.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"^{name}\.bin in .* is too short$"):
        restored(tmp_path, 30)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        restored(tmp_path, 30)
