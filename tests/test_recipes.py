"""Every shipped recipe loads for whatever it claims to cover, and says what the papers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from om2p_data import tiers
from om2p_data.behavior import runs
from om2p_data.envs.registry import TASKS, Task
from om2p_data.errors import UserError
from om2p_data.recipe import Record, bundled, fill, merge, parse_overrides, read
from om2p_data.spec import EnvironmentCard
from om2p_data.stacked import Activation
from om2p_data.tiers import Tier
from om2p_train import algorithms, config
from om2p_train.actors import OneStep
from om2p_train.algorithms.base import NormalizeQ
from om2p_train.algorithms.ma_cql import Proposal
from om2p_train.algorithms.omar import Search
from om2p_train.config import Scale
from om2p_train.flows import Derivative, TimePair
from om2p_train.streams import INITIALISATION, SeedStreams
from om2p_train.team import Team

RECIPES = [
    "bc",
    "bc-flow",
    "ma-cql",
    "ma-cql-authors",
    "ma-fql",
    "ma-sfbc",
    "om2p",
    "om2p-paper",
    "om2p-paper-gradient",
    "om2p-paper-only-bc",
    "om2p-paper-only-q",
    "om2p-paper-uniform",
    "om2p-released",
    "omar",
    "omar-authors",
    "vgm2p",
]

# OM2P paper, Table 3: eta and xi.
PAPER = {
    ("predator-prey", "medium-replay"): (100, (0, 0, 0, 0)),
    ("predator-prey", "medium"): (10, (0, 0, 0.2, 0)),
    ("predator-prey", "medium-expert"): (100, (2, 0, 0, 0)),
    ("predator-prey", "expert"): (1, (0, 0, 0, 0)),
    ("world", "medium-replay"): (100, (0, 0, 0.2, 0)),
    ("world", "medium"): (1000, (0, 0, 0.2, 0)),
    ("world", "medium-expert"): (10000, (0, 0, 0, 0)),
    ("world", "expert"): (1, (0, 0, 0, 0)),
    ("cooperative-navigation", "medium-replay"): (1, (0, 0, 0, 0)),
    ("cooperative-navigation", "medium"): (1, (0, 0, 0, 0)),
    ("cooperative-navigation", "medium-expert"): (0.1, (0, 0, 0.05, 0)),
    ("cooperative-navigation", "expert"): (1, (0, 0, 0.1, 0)),
    ("halfcheetah-2x3", "medium-replay"): (1, (0, 0, 0, 0)),
    ("halfcheetah-2x3", "medium"): (0.125, (0, 0, 0, 0)),
    ("halfcheetah-2x3", "medium-expert"): (0.02, (0, 0, 0, 0)),
    ("halfcheetah-2x3", "expert"): (0.008, (0, 0, 0, 0)),
}


def test_what_is_bundled() -> None:
    assert bundled("data") == sorted(TASKS)
    assert bundled("train") == RECIPES


# Data


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_data_recipes_load_and_build_a_learner(task: Task) -> None:
    behavior = tiers.load_recipe(task, None).behavior
    assert behavior.collection_noise == 0.1  # as in the published data sets
    assert (behavior.levels.medium, behavior.levels.expert) == task.levels
    assert behavior.max_steps >= 10 * behavior.num_envs * behavior.segment_steps
    assert behavior.evaluation_episodes <= behavior.judging_episodes
    actor = runs.start(task, behavior, seed=0).actor
    actions = actor.act(np.zeros((2, task.num_agents, task.obs_dim), np.float32), np.random.default_rng(0))
    assert actions.shape == (2, task.num_agents, task.act_dim)


# Training


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("name", RECIPES)
def test_training_recipes_load_for_every_task_and_tier(name: str, scale: Scale) -> None:
    for task in TASKS.values():
        for tier in Tier:
            recipe = config.load(name, task.name, tier, scale)
            assert (recipe.name, recipe.scale) == (name, scale)
            assert recipe.run.updates % recipe.run.evaluate_every == 0


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
@pytest.mark.parametrize("name", RECIPES)
def test_training_recipes_build_their_algorithm(name: str, task: Task) -> None:
    for tier in Tier:
        recipe = config.load(name, task.name, tier)
        team, streams = Team.of(EnvironmentCard.of(task).spec), SeedStreams([0, 1], INITIALISATION)
        try:
            algorithms.find(recipe.algorithm)(team, recipe.network, recipe.options, streams)
        except UserError:
            assert team.discrete


@pytest.mark.parametrize("name", ["om2p-paper", "om2p-released"])
def test_eta_and_xi_are_the_papers(name: str) -> None:
    for (task, tier), expected in PAPER.items():
        options = config.load(name, task, Tier(tier), Scale.PAPER).options.model_dump()
        assert (options["eta"], options["xi"]) == expected, (task, tier)
        assert options["normalize_q"] is NormalizeQ.NONE


@pytest.mark.parametrize("name", ["om2p", "om2p-paper", "om2p-released"])
def test_settings_common_to_all_of_the_papers_runs(name: str) -> None:
    recipe = config.load(name, "world", Tier.MEDIUM, Scale.PAPER)
    assert recipe.run.updates == 1_000_000
    optimizer = recipe.optimizer.model_dump(exclude_none=True)
    assert optimizer == {"learning_rate": 3e-4, "batch_size": 256, "rho": 0.005}
    assert (recipe.options.model_dump()["gamma"], recipe.network.hidden) == (0.99, (512, 512, 512, 512))
    assert (recipe.network.activation, recipe.network.critic_layer_norm) == (Activation.GELU, True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("om2p", (TimePair.ORDERED, Derivative.EXACT, OneStep.JUMP, True)),
        ("om2p-paper", (TimePair.ONE_DRAW, Derivative.ZERO, OneStep.JUMP, True)),
        ("om2p-released", (TimePair.INDEPENDENT, Derivative.ZERO, OneStep.RAW, False)),
    ],
)
def test_presets(name: str, expected: tuple) -> None:
    options = config.load(name, "world", Tier.MEDIUM).options.model_dump()
    assert tuple(options[key] for key in ("time_pair", "derivative", "one_step", "target_actor")) == expected
    assert options["adaptive_power"] == 0


# OMAR paper, appendix: alpha and c (published for these tiers alone).
OMAR = {
    "cooperative-navigation": {"medium-replay": (1, 1), "medium": (5, 1), "expert": (5, 1), "random": (0.5, 1)},
    "predator-prey": {"medium-replay": (0.5, 0.9), "medium": (5, 0.7), "expert": (5, 0.9), "random": (0.5, 0.9)},
    "world": {"medium-replay": (1, 0.7), "medium": (0.5, 0.1), "expert": (5, 0.9), "random": (0.5, 1)},
    "halfcheetah-2x3": {"medium-replay": (5, 0.9), "medium": (1, 0.7), "expert": (5, 0.5), "random": (1, 1)},
}


@pytest.mark.parametrize("suffix", ["", "-authors"])
def test_alpha_and_c_are_omars(suffix: str) -> None:
    for task, by_tier in OMAR.items():
        for tier, (alpha, c) in {**by_tier, "medium-expert": by_tier["medium"]}.items():
            options = config.load(f"omar{suffix}", task, Tier(tier), Scale.PAPER).options.model_dump()
            assert (options["alpha"], options["c"]) == (alpha, c), (task, tier)
            assert config.load(f"ma-cql{suffix}", task, Tier(tier), Scale.PAPER).options.model_dump()["alpha"] == alpha


@pytest.mark.parametrize(
    ("task", "hidden", "optimizer", "updates", "search"),
    [
        ("cooperative-navigation", (64, 64), (1e-2, 1024, 0.01), 2_000, (Search.SOFTMAX, 3, 10)),
        ("predator-prey", (64, 64), (1e-2, 1024, 0.01), 2_000, (Search.SOFTMAX, 3, 10)),
        ("world", (64, 64), (1e-2, 1024, 0.01), 1_000, (Search.SOFTMAX, 3, 10)),
        ("halfcheetah-2x3", (256, 256), (3e-4, 256, 0.005), 100_000, (Search.CROSS_ENTROPY, 2, 20)),
    ],
)
@pytest.mark.parametrize("scale", Scale)
def test_omars_own_sizes(task, hidden, optimizer, updates, search, scale: Scale) -> None:
    recipe = config.load("omar-authors", task, Tier.MEDIUM, scale)
    assert (recipe.network.hidden, recipe.network.activation) == (hidden, Activation.RELU)
    assert not recipe.network.critic_layer_norm
    found = recipe.optimizer
    assert (found.learning_rate, found.rho) == (optimizer[0], optimizer[2])
    assert found.max_gradient == (None if task == "halfcheetah-2x3" else 0.5)
    if scale is Scale.PAPER:
        assert (found.batch_size, recipe.run.updates) == (optimizer[1], updates)
    options = recipe.options.model_dump()
    assert (options["search"], options["search_rounds"], options["search_samples"]) == search
    assert (options["gamma"], options["search_mu"], options["search_sigma"]) == (0.95, 0, 2)
    particle = task != "halfcheetah-2x3"
    assert recipe.data.normalize_obs == particle
    assert options["action_cost"] == (1e-3 if particle else 0)
    assert options["proposal"] is (Proposal.UNIFORM if particle else Proposal.POLICY)


def test_published_settings_of_the_flow_and_diffusion_baselines() -> None:
    fql = config.load("ma-fql", "world", Tier.MEDIUM, Scale.PAPER)
    assert (fql.options.model_dump()["alpha"], fql.options.model_dump()["flow_steps"]) == (10, 10)
    sfbc = config.load("ma-sfbc", "world", Tier.MEDIUM, Scale.PAPER)
    options = sfbc.options.model_dump()
    assert options["score_hidden"] == (512, 256, 128)
    named = ("time_features", "solver_evaluations", "rounds", "planning_samples", "candidates")
    assert [options[key] for key in named] == [32, 15, 2, 16, 32]
    assert (options["planning_sharpness"], options["sharpness"]) == (20, 100)
    assert sfbc.optimizer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("only-q", {"bc_weight": 0.0}),
        ("only-bc", {"eta": 0.0}),
        ("uniform", {"xi": (0.0, 0.0, 0.0, 0.0)}),
        ("gradient", {"derivative": Derivative.EXACT, "time_pair": TimePair.INDEPENDENT}),
    ],
)
def test_ablations_differ_from_the_paper_in_one_thing_for_every_task_and_tier(name: str, expected: dict) -> None:
    for task in TASKS:
        for tier in Tier:
            whole = config.load("om2p-paper", task, tier).options.model_dump()
            assert config.load(f"om2p-paper-{name}", task, tier).options.model_dump() == whole | expected


def test_a_base_is_looked_for_beside_the_file_that_names_it(tmp_path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "mine.toml").write_text('base = "lab/ours.toml"\n[options]\neta = 7.0\n')
    (tmp_path / "lab" / "ours.toml").write_text('base = "root.toml"\n[optimizer]\nrho = 0.5\n')
    (tmp_path / "lab" / "root.toml").write_text('base = "om2p"\n[optimizer]\nrho = 0.25\nmax_gradient = 3.0\n')
    found = config.load(tmp_path / "mine.toml", "mine", None)
    assert found.options.model_dump()["eta"] == 7
    assert (found.optimizer.rho, found.optimizer.max_gradient) == (0.5, 3.0)
    (tmp_path / "lab" / "root.toml").write_text('base = "ours.toml"\n')
    with pytest.raises(UserError, match="leads back to itself"):
        config.load(tmp_path / "mine.toml", "mine", None)


def test_what_is_fixed_yields_to_the_command_line_alone() -> None:
    assert config.load("bc-flow", "world", Tier.MEDIUM).options.model_dump()["eta"] == 0
    assert config.load("bc-flow", "world", Tier.MEDIUM, settings=["options.eta=2"]).options.model_dump()["eta"] == 2


# How recipes are read


class Inner(Record):
    size: int = 3
    widths: tuple[int, ...] = (1,)


class Outer(Record):
    rate: float
    name: str = ""
    on: bool = False
    inner: Inner = Inner()
    spare: Inner | None = None


def test_a_scale_may_have_values_of_its_own_for_a_task_and_tier(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        'base = "ma-fql"\n[scale.cpu.options]\nalpha = 1.0\n[task.world.options]\nalpha = 2.0\n'
        "[scale.cpu.task.world.options]\nalpha = 3.0\n[scale.cpu.task.world.expert.options]\nalpha = 4.0\n"
    )

    def alpha(*arguments: Any, **more: Any) -> float:
        return config.load(recipe, *arguments, **more).options.model_dump()["alpha"]

    assert alpha("toy", None) == 1.0
    assert alpha("world", Tier.MEDIUM, Scale.PAPER) == 2.0
    assert alpha("world", Tier.MEDIUM) == 3.0
    assert alpha("world", Tier.EXPERT) == 4.0
    assert alpha("world", Tier.EXPERT, settings=["options.alpha=5"]) == 5.0
    recipe.write_text('base = "ma-fql"\n[scale.cpu.task.world.optionz]\nalpha = 3.0\n')
    with pytest.raises(UserError, match=r"unknown key in \[task.world\] 'optionz'"):
        alpha("world", Tier.EXPERT)


def test_what_a_recipe_says_counts_more_than_any_section_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'base = "ma-fql"\n[task.world.expert.options]\nalpha = 2.0\n[scale.cpu.task.world.options]\nalpha = 3.0\n'
    )
    own = tmp_path / "own.toml"
    own.write_text('base = "base.toml"\n[options]\nalpha = 4.0\n[run]\nupdates = 600\n')
    assert config.load(tmp_path / "base.toml", "world", Tier.EXPERT).options.model_dump()["alpha"] == 3.0
    recipe = config.load(own, "world", Tier.EXPERT)
    assert (recipe.options.model_dump()["alpha"], recipe.run.updates) == (4.0, 600)
    assert recipe.run.evaluate_every == config.load("bc", "world", None).run.evaluate_every  # scale cpu's, from bc


def test_a_family_of_tasks_may_have_values_in_common(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        'base = "ma-fql"\n[task.particle.options]\nflow_steps = 1\n[task.particle.expert.options]\nflow_steps = 2\n'
        "[task.world.options]\nflow_steps = 3\n[scale.cpu.task.particle.medium.options]\nflow_steps = 4\n"
        "[task.locomotion.options]\nflow_steps = 5\n[task.cooperative-navigation.expert.options]\nflow_steps = 6\n"
    )

    def steps(task: str, tier: Tier, scale: Scale = Scale.PAPER) -> int:
        return config.load(recipe, task, tier, scale).options.model_dump()["flow_steps"]

    assert steps("predator-prey", Tier.RANDOM) == 1
    assert steps("predator-prey", Tier.EXPERT) == 2
    assert steps("cooperative-navigation", Tier.EXPERT) == 6
    assert steps("world", Tier.EXPERT) == 3  # a task's own are nearer than those of its family's tier
    assert steps("world", Tier.MEDIUM, Scale.CPU) == 4
    assert {steps(task, Tier.EXPERT) for task in ("hopper-3x1", "ant-2x4")} == {5}
    assert steps("toy", Tier.EXPERT) == config.load("ma-fql", "toy", Tier.EXPERT).options.model_dump()["flow_steps"]
    recipe.write_text(
        'base = "ma-fql"\n[task.any.options]\nflow_steps = 7\n[task.any.expert.options]\nflow_steps = 8\n'
        "[task.toy.options]\nflow_steps = 9\n[task.harvest.expert.options]\nflow_steps = 3\n"
    )
    assert [steps(task, Tier.EXPERT) for task in ("world", "toy", "harvest", "another")] == [8, 9, 3, 8]
    assert steps("another", Tier.MEDIUM) == 7
    recipe.write_text('base = "ma-fql"\n[task.particles.options]\nflow_steps = 1\n')
    with pytest.raises(UserError, match=r"unknown section in \[task\] 'particles': did you mean 'particle'"):
        steps("world", Tier.EXPERT)


def test_later_layers_win_key_by_key() -> None:
    base = {"rate": 1.0, "inner": {"size": 1, "widths": [1]}}
    merged = merge(base, {"inner": {"size": 2}, "name": "x"})
    assert merged == {"rate": 1.0, "name": "x", "inner": {"size": 2, "widths": [1]}}
    assert base["inner"] == {"size": 1, "widths": [1]}
    assert merge({"a": {"b": 1}}, {"a": 5}) == {"a": 5}


def test_settings_are_toml_or_text() -> None:
    found = parse_overrides(["a.b.c=1", "a.b.d = [1, 2.5]", "a.e=one-draw", "f=true", 'g="64"', "h=x=y", "a.b.c=3"])
    assert found == {"a": {"b": {"c": 3, "d": [1, 2.5]}, "e": "one-draw"}, "f": True, "g": "64", "h": "x=y"}


@pytest.mark.parametrize("setting", ["rate", "", "=3", " =3"])
def test_settings_without_a_key_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match="--set takes key=value"):
        parse_overrides([setting])


def test_values_of_the_right_type_are_taken() -> None:
    record = fill(Outer, {"rate": 1, "inner": {"widths": [4, 5]}}, "recipe x")
    assert record == Outer(rate=1.0, inner=Inner(widths=(4, 5)))
    with pytest.raises(ValueError, match="frozen"):
        record.rate = 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "recipe x: key 'rate' is missing"),
        ({"rate": "1"}, "recipe x: rate = '1' is wrong: Input should be a valid number"),
        ({"rate": True}, "recipe x: rate = True is wrong"),
        ({"rate": float("inf")}, "recipe x: rate = inf is wrong: Input should be a finite number"),
        ({"rate": 1, "on": 1}, "recipe x: on = 1 is wrong: Input should be a valid boolean"),
        ({"rate": 1, "name": 3}, "recipe x: name = 3 is wrong: Input should be a valid string"),
        ({"rate": 1, "inner": {"size": 2.5}}, "recipe x: inner.size = 2.5 is wrong"),
        ({"rate": 1, "inner": {"size": "2"}}, "recipe x: inner.size = '2' is wrong: Input should be a valid integer"),
        ({"rate": 1, "inner": {"widths": [1, "2"]}}, "recipe x: inner.widths.1 = '2' is wrong"),
        ({"rate": 1, "inner": 5}, "recipe x: inner = 5 is wrong"),
        ({"rate": {"a": 1}}, "recipe x: rate is wrong: Input should be a valid number"),
        ({"rate": 1, "inner": {"sise": 5}}, "recipe x: unknown key 'inner.sise': did you mean 'inner.size'"),
        ({"rate": 1, "spare": {"sise": 5}}, "recipe x: unknown key 'spare.sise': did you mean 'spare.size'"),
        ({"rate": 1, "rates": 5}, "recipe x: unknown key 'rates': did you mean 'rate' or 'name'? valid: rate, "),
    ],
)
def test_wrong_values_name_their_key(values: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        fill(Outer, values, "recipe x")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_options_that_make_no_sense_together_say_why() -> None:
    settings = ["options.derivative=finite-difference", "options.finite_difference_step=1e-12"]
    with pytest.raises(UserError, match=r"^recipe om2p: options is wrong: .*resolution") as caught:
        config.load("om2p", "world", Tier.MEDIUM, settings=settings)
    assert len(str(caught.value)) < 250


def test_keys_are_named_with_their_table() -> None:
    with pytest.raises(UserError, match=r"unknown key 'run\.rote': did you mean 'run\.rate'"):
        fill(Outer, {"rate": 1, "rote": 2}, "recipe x", "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = ", "is not valid TOML"),
        (b"\xff\xfe", "cannot be read: .*utf-8"),
        (None, "does not exist; bundled .*om2p"),
    ],
)
def test_files_that_cannot_be_read(content: bytes | None, message: str, tmp_path) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path, "train")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_recipes_offer_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'om2p-papr': did you mean 'om2p-paper'"):
        read("om2p-papr", "train")
