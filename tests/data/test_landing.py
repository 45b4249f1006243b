"""Landing on a level: which policy is kept, judged on toy policies whose return is known."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from om2p_data import tiers
from om2p_data.behavior import training
from om2p_data.behavior.config import EXPERT, LEVELS, MEDIUM, BehaviorConfig, Levels
from om2p_data.behavior.policy import GaussianNoise, TeamActor, load_actor
from om2p_data.behavior.replay import Replay
from om2p_data.envs.registry import find
from om2p_data.envs.vector import VectorEnv
from om2p_data.errors import UserError

from .conftest import TINY

CN = find("cn")
JUDGING = 20
Landscape = Callable[[float], float]


def recipe(segments: int) -> BehaviorConfig:
    """Medium is 95 to 105, expert 200 to 230; training gives up after that many segments."""
    config = tiers.load_recipe(CN, None, TINY).behavior
    steps = config.num_envs * config.segment_steps
    changes = {
        "levels": Levels(medium=100.0, expert=200.0),
        "max_steps": segments * steps,
        "evaluation_episodes": 10,
        "judging_episodes": JUDGING,
    }
    return config.model_copy(update=changes)


def team_at(place: float) -> TeamActor:
    """A team that stands at that place of the line on which policies are mixed."""
    actor = TeamActor(3, 18, 2, (4,))
    for weight in actor.parameters():
        weight.data.zero_()
    actor.net.output_layer.bias.data.fill_(place)  # pyright: ignore
    return actor


def place_of(actor: TeamActor) -> float:
    return float(actor.net.output_layer.bias.data[0, 0, 0])  # pyright: ignore


class Counted(NamedTuple):
    updates: int


class Walk:
    """In the place of a run: after every segment its policy stands where the list says."""

    learns_from_memory = False

    def __init__(self, config: BehaviorConfig, places: list[float]):
        self._config, self._places = config, places
        self.memory: Replay | None = Replay(CN, config.num_envs, config.segment_steps)
        self.segments = self.env_steps = 0

    def advance(self) -> None:
        worlds, still = self._config.num_envs, np.zeros((self._config.num_envs, 3, 18), np.float32)
        self.segments += 1
        self.env_steps += worlds * self._config.segment_steps
        if self.memory is not None:
            for _ in range(self._config.segment_steps):
                over = np.zeros((worlds, 3), bool)
                self.memory.add(still, still[:, 0], still[..., :2], still[..., 0], still, still[:, 0], over, over)

    @property
    def actor(self) -> TeamActor:
        return team_at(self._places[self.segments - 1])

    @property
    def learner(self) -> Counted:
        return Counted(self.segments)

    def state(self) -> dict[str, int]:
        return {"segments": self.segments, "env_steps": self.env_steps}

    def restore(self, state: dict[str, int]) -> None:
        self.segments, self.env_steps = state["segments"], state["env_steps"]


class Kept(NamedTuple):
    place: float
    card: dict


class Stage:
    """Trains along lists of places, in the same folder every time.

    Args:
        returns: of a policy at a place; `judged`: the same on the fresh starts that decide.
    """

    def __init__(self, patch: pytest.MonkeyPatch, returns: Landscape = float, judged: Landscape | None = None):
        self._patch = patch
        self.evaluations = self.judgements = 0
        self.seeds: tuple[set[int], set[int]] = (set(), set())  # of evaluations and of judgements

        def known(policy: GaussianNoise, env: VectorEnv, seed: int) -> np.ndarray:
            assert vars(policy)["_sigma"] == recipe(1).collection_noise
            judging = env.num_envs == JUDGING
            self.judgements += judging
            self.evaluations += not judging
            self.seeds[judging].add(seed)
            value = (judged or returns if judging else returns)(place_of(vars(policy)["_policy"]))
            return np.full(env.num_envs, value)

        patch.setattr(training, "team_returns", known)

    def train(self, places: list[float], until: str = EXPERT) -> dict[str, Kept]:
        config = recipe(len(places))
        self._patch.setattr(training.runs, "start", lambda *_: Walk(config, places))
        training.train(CN, config, seed=0, until=until, progress=False)
        return self.kept

    @property
    def folder(self) -> Path:
        return training.run_folder(CN, recipe(1), seed=0)

    @property
    def kept(self) -> dict[str, Kept]:
        found = {}
        for level in LEVELS:
            path = self.folder / f"{level}.safetensors"
            if path.exists():
                actor, card = load_actor(path, CN)
                found[level] = Kept(place_of(actor), card)
        return found


@pytest.fixture
def patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    return monkeypatch


@pytest.mark.parametrize(
    ("places", "medium", "expert"),
    [
        # place, share of the line, segment
        ([50, 100, 210], (100, 1.0, 2), (210, 1.0, 3)),
        ([50, 150, 250], (100, 0.5, 2), (225, 0.75, 3)),
        ([100, 60, 210], (100, 1.0, 1), (210, 1.0, 3)),
        # Nothing is below the first policy, so there is no line to land on.
        ([150, 50, 150, 215], (100, 0.5, 3), (215, 1.0, 4)),
        # One leap over both levels.
        ([50, 500], (50 + 450 * 7 / 64, 7 / 64, 2), (50 + 450 * 3 / 8, 3 / 8, 2)),
        # The line for the expert starts at the last policy below the expert's window, not below the medium's.
        ([50, 100, 180, 300], (100, 1.0, 2), (210, 0.25, 4)),
        ([50, 100, 300], (100, 1.0, 2), (225, 0.625, 3)),
    ],
)
def test_a_policy_on_the_line_between_two_segments_is_kept(
    places: list[float],
    medium: tuple[float, float, int],
    expert: tuple[float, float, int],
    patch: pytest.MonkeyPatch,
) -> None:
    found = Stage(patch).train(places)
    for level, (place, share, segment) in ((MEDIUM, medium), (EXPERT, expert)):
        card = found[level].card
        assert (card["line_share"], card["updates"]) == (share, segment), level
        assert found[level].place == pytest.approx(place, rel=1e-3)
        assert card["return_mean"] == pytest.approx(place, rel=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_kept_lies_in_its_window(seed: int, patch: pytest.MonkeyPatch) -> None:
    """Random walks over a bumpy landscape, judged with an error of its own: often nothing is kept."""
    rng = np.random.default_rng(seed)
    bump, offset = rng.uniform(5, 40), rng.uniform(-12, 12)

    def returns(place: float) -> float:
        return place + bump * np.sin(place / 7)

    stage = Stage(patch, returns, lambda place: returns(place) + offset)
    with contextlib.suppress(UserError):
        stage.train(list(rng.uniform(0, 400, 12)))
    for level, found in stage.kept.items():
        low, high = recipe(1).levels.window(level)
        assert low <= returns(found.place) + offset <= high
        assert found.card["return_mean"] == pytest.approx(returns(found.place) + offset)


def test_a_policy_that_fresh_starts_do_not_confirm_is_not_kept(patch: pytest.MonkeyPatch) -> None:
    stage = Stage(patch, judged=lambda place: place + 20)
    with pytest.raises(UserError, match="the medium level is 95"):
        stage.train([50, 100, 50, 150])
    assert stage.kept == {}
    assert stage.judgements > 1


def test_a_leap_on_the_line_keeps_nothing_and_training_goes_on(patch: pytest.MonkeyPatch) -> None:
    stage = Stage(patch, lambda place: 50 if place < 120 else place)
    with pytest.raises(UserError, match="the medium level"):
        stage.train([50, 150, 50, 150])
    assert (stage.kept, stage.judgements) == ({}, 0)


def test_what_cannot_land_costs_one_evaluation(patch: pytest.MonkeyPatch) -> None:
    """Nothing to mix with, below the level, or at its very edge, beyond which no line leads."""
    stage = Stage(patch)
    with pytest.raises(UserError):
        stage.train([150, 50, 60, 94, 95.5])
    assert (stage.evaluations, stage.judgements) == (5, 0)


def test_levels_are_judged_on_starts_that_did_not_choose_the_policy(patch: pytest.MonkeyPatch) -> None:
    stage = Stage(patch)
    stage.train([50, 150, 250])
    choosing, judging = stage.seeds
    assert (len(choosing), len(judging)) == (1, 1)
    assert choosing != judging


def test_only_the_medium_level(patch: pytest.MonkeyPatch) -> None:
    stage = Stage(patch)
    assert list(stage.train([50, 100, 500, 210], until=MEDIUM)) == [MEDIUM]
    assert not (stage.folder / "log.csv").exists()
    medium = stage.kept[MEDIUM]
    # Later the expert is trained on from there, and the medium team stays what it is.
    found = stage.train([50, 100, 500, 210], until=EXPERT)
    assert found[MEDIUM] == medium
    assert found[EXPERT].card["updates"] == 3
    assert (stage.folder / "log.csv").exists()


def test_training_that_gave_up_goes_on_with_more_steps(patch: pytest.MonkeyPatch) -> None:
    stage, places = Stage(patch), [50.0, 100.0, 150.0, 180.0, 220.0]
    message = (
        r"^behaviour training of cooperative-navigation stopped at (\d+) environment steps with a best return of "
        r"150\.0; the expert level is 200\.0 to 230\.0: raise behavior\.max_steps \(training goes on where it "
        r"stopped\) or change behavior\.levels\.expert in the data recipe$"
    )
    with pytest.raises(UserError, match=message) as caught:
        stage.train(places[:3])
    assert "\n" not in str(caught.value)
    assert list(stage.kept) == [MEDIUM]
    walks: list[Walk] = []
    advance = Walk.advance

    def counting(walk: Walk) -> None:
        walks.append(walk)
        advance(walk)

    patch.setattr(Walk, "advance", counting)
    found = stage.train(places)
    assert found[EXPERT].card["updates"] == 5
    assert len(walks) == 2, "three of the five segments had been there"
    log = (stage.folder / "log.csv").read_text().splitlines()
    assert [float(line.split(",")[3]) for line in log[1:]] == places


@pytest.mark.parametrize("saved_after", [0, 1, 2])
def test_a_level_kept_after_the_last_checkpoint_is_reached_once_more(
    saved_after: int, patch: pytest.MonkeyPatch
) -> None:
    """The first policy would do for an expert, but in an uninterrupted run it comes before the medium level."""
    places = [210.0, 50.0, 100.0, 215.0]
    stage, advance = Stage(patch), Walk.advance

    def killed(walk: Walk) -> None:
        if walk.segments == 3:
            raise KeyboardInterrupt
        advance(walk)
        patch.setattr(training, "_SECONDS_BETWEEN_CHECKPOINTS", 1e9 if walk.segments > saved_after else -1.0)

    with patch.context() as while_killed:
        while_killed.setattr(Walk, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.train(places)
    assert list(stage.kept) == [MEDIUM]
    found = stage.train(places)
    assert [(level, found[level].card["updates"]) for level in found] == [(MEDIUM, 3), (EXPERT, 4)]


def test_the_line_starts_at_the_same_policy_after_a_pause(patch: pytest.MonkeyPatch) -> None:
    """The last policy below the level, which is not the last one before the pause."""
    places = [50.0, 150.0, 250.0]
    with pytest.raises(UserError, match="the medium level"):
        Stage(patch, judged=lambda place: place + 20).train(places[:2])
    found = Stage(patch).train(places, until=MEDIUM)
    assert (found[MEDIUM].place, found[MEDIUM].card["line_share"]) == (100.0, 0.25)
