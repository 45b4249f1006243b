"""om2p-data: worlds, behaviour policies and data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import check, collect, inspect, share
from .common import Quiet, Root, Settings, guarded

app = typer.Typer(
    help="Train behaviour teams online and roll them out into Minari data sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Env = Annotated[str, typer.Option("--env", help="Task: cn, pp, world, hc, or its long name.")]
Seed = Annotated[int, typer.Option(help="Seed of behaviour training and rollouts.", min=0, max=2**63 - 1)]
Recipe = Annotated[str | None, typer.Option(help="Data recipe: a TOML file. Default: the task's own.")]


@app.command()
def generate(
    env: Env,
    tier: Annotated[str, typer.Option(help="random, medium-replay, medium, medium-expert or expert.")],
    transitions: Annotated[
        int | None,
        typer.Option(
            help="How many; the last episode is completed. Default: 1,000,000 (medium-replay: all there are)."
        ),
    ] = None,
    mix: Annotated[
        float | None, typer.Option(help="Share of expert transitions in medium-expert. Default: 0.1 (hc: 0.001).")
    ] = None,
    seed: Seed = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train the behaviour team anew instead of taking the bundled one.")
    ] = False,
    version: Annotated[int, typer.Option(help="Version N in the data set's id.", min=0)] = 0,
    recipe: Recipe = None,
    set_: Settings = None,
    root: Root = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of the same id.")] = False,
    quiet: Quiet = False,
) -> None:
    """Collect a tier and write it as a Minari data set.

    Medium and expert teams ship with the package. They are trained with --fresh, with another recipe, and for
    medium-replay; an interrupted training goes on when the same command is given again.
    """
    from om2p_data import generation, tiers
    from om2p_data.envs import find
    from om2p_data.recipe import parse_overrides

    task = find(env)
    wanted = tiers.Tier.parse(tier)
    config = tiers.load_recipe(task, recipe, parse_overrides(set_ or []))
    made = generation.generate(
        task,
        wanted,
        config,
        transitions=transitions,
        expert_share=mix,
        seed=seed,
        fresh=fresh,
        version=version,
        root=root,
        overwrite=overwrite,
        progress=not quiet,
    )
    episodes = made.collected.episodes
    returns = episodes.team_returns
    published = getattr(task.returns, wanted.name.lower(), None)
    beside = f" (published: {published:.1f})" if published is not None else ""
    print(f"{made.dataset_id}: {episodes.num_transitions:,} transitions in {len(returns):,} episodes,", end=" ")
    print(f"return {returns.mean():.1f} ± {returns.std():.1f}{beside}")
    if len(made.collected.policies) > 1:
        for policy in made.collected.policies:
            print(f"  {policy.name}: {policy.episodes:,} episodes,", end=" ")
            print(f"return {policy.return_mean:.1f} ± {policy.return_std:.1f}")
    for team in made.collected.teams:
        card = team.card
        print(f"  {team.level} team: {team.origin} ({card['algorithm']}, seed {card['seed']},", end=" ")
        print(f"return {card['return_mean']:.1f} ± {card['return_std']:.1f} over {card['episodes']:,} episodes)")
    print(f"in {made.folder}")


@app.command("train")
def train_behavior(
    env: Env,
    until: Annotated[str, typer.Option(help="Level at which training ends: medium or expert.")] = "expert",
    seed: Seed = 0,
    recipe: Recipe = None,
    set_: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder to copy the teams to.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a behaviour team online and keep its policy at the medium and the expert level.

    An interrupted training goes on when the same command is given again.
    """
    import shutil

    from om2p_data import tiers
    from om2p_data.behavior import training
    from om2p_data.behavior.config import LEVELS
    from om2p_data.envs import find
    from om2p_data.errors import UserError, unknown
    from om2p_data.recipe import parse_overrides
    from om2p_data.storage import ensure_writable, reason

    if until not in LEVELS:
        raise unknown("level", until, LEVELS)
    task = find(env)
    config = tiers.load_recipe(task, recipe, parse_overrides(set_ or [])).behavior
    if out is not None:
        ensure_writable(out)
    folder = training.train(task, config, seed, until=until, progress=not quiet)
    for level in LEVELS[: LEVELS.index(until) + 1]:
        card = training.obtain(task, level, config, seed, fresh=True).card
        print(f"{level}: return {card['return_mean']:.1f} ± {card['return_std']:.1f}", end=" ")
        print(f"after {card['updates']:,} updates, {card['env_steps']:,} steps, {card['seconds']:.0f} s")
        if out is not None:
            try:
                shutil.copyfile(folder / f"{level}.safetensors", out / f"{level}.safetensors")
            except OSError as error:
                raise UserError(f"cannot write to {out}: {reason(error)}") from error
    print(f"in {out or folder}")


@app.command("train-prey")
def train_prey(
    env: Annotated[str, typer.Option("--env", help="Task: pp or world.")],
    out: Annotated[Path, typer.Option(help="File to write, e.g. prey.safetensors.")],
    seed: Seed = 0,
    recipe: Recipe = None,
    set_: Settings = None,
    quiet: Quiet = False,
) -> None:
    """Train a prey together with three predators and freeze it on the published scale.

    This is how the prey that ships with the package was made.
    """
    from om2p_data import tiers
    from om2p_data.behavior import prey
    from om2p_data.envs import find
    from om2p_data.errors import UserError
    from om2p_data.recipe import parse_overrides

    task = find(env)
    config = tiers.load_recipe(task, recipe, parse_overrides(set_ or [])).prey
    if config is None:
        raise UserError(f"the data recipe of {task.name} has no table [prey]: valid tasks: predator-prey, world")
    card = prey.train_prey(task, config, seed, out, progress=not quiet)
    print(f"{card['identity']}: random predators score {card['random_return_mean']:.2f} ±", end=" ")
    print(f"{card['random_return_std']:.2f} (published: {task.returns.random}) after {card['env_steps']:,} steps")
    print(f"in {out}")


@app.command("list")
def list_(root: Root = None) -> None:
    """List the data sets on this machine."""
    from om2p_data import dataset

    found = dataset.list_datasets(root)
    if not found:
        print(f"no data sets in {dataset.datasets_root(root)}; make one: om2p-data generate --env cn --tier medium")
        return
    width = max(len(summary.id) for summary in found)
    print(f"{'id':{width}}  {'transitions':>11}  {'episodes':>8}  {'return':>17}  {'MB':>7}")
    for summary in found:
        known = summary.return_mean is not None
        returns = f"{summary.return_mean:.1f} ± {summary.return_std:.1f}" if known else "not stated"
        print(f"{summary.id:{width}}  {summary.transitions:>11,}  {summary.episodes:>8,}", end="  ")
        print(f"{returns:>17}  {summary.megabytes:>7.1f}")


@app.command()
def envs() -> None:
    """List the tasks with their sizes and published returns."""
    from om2p_data.envs import TASKS

    print(f"{'task':32}{'alias':7}{'agents':>7}{'obs':>5}{'act':>5}{'steps':>7}{'random':>9}{'medium':>9}{'expert':>9}")
    for task in TASKS.values():
        sizes = f"{task.num_agents:>7}{task.obs_dim:>5}{task.act_dim:>5}{task.horizon:>7}"
        published = task.returns
        random = f"{task.reference_random:.1f}*" if published.random is None else f"{published.random:.1f}"
        star = "*" if published.expert is None else ""
        medium, expert = (f"{level:.1f}{star}" for level in task.levels)
        print(f"{task.name:32}{task.alias:7}{sizes}{random:>9}{medium:>9}{expert:>9}")
    print("random, medium, expert: mean team returns of the published data sets (* not published: ours)")


collect.register(app)
share.register(app)
check.register(app)
inspect.register(app)


def main() -> None:
    """Entry point."""
    guarded(app)
