"""om2p-data: data from environments and policies of other people."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Quiet, Root


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("collect")(collect)


def collect(
    env: Annotated[str, typer.Option("--env", help="package.module:factory of a PettingZoo environment.")],
    id_: Annotated[str, typer.Option("--id", help="Of the new data set: <namespace>/<task>/<tier>-v<N>.")],
    transitions: Annotated[int, typer.Option(help="How many; the last episode is completed.", min=1)],
    policy: Annotated[
        str, typer.Option(help="package.module:policy, called as policy(observations, rng), or random.")
    ] = "random",
    seed: Annotated[int, typer.Option(help="Of environment and policy.", min=0, max=2**63 - 1)] = 0,
    max_steps: Annotated[
        int | None, typer.Option(help="Cut episodes off after so many steps (environments that never end).", min=1)
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; the data do not depend on it.", min=1)] = 1,
    root: Root = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of the same id.")] = False,
    quiet: Quiet = False,
) -> None:
    """Play any PettingZoo parallel environment with any policy, into a Minari data set.

    Interrupted, it goes on when the same command is given again.
    """
    from om2p_data import collection

    folder, episodes = collection.collect(
        id_,
        env,
        policy,
        transitions=transitions,
        seed=seed,
        max_steps=max_steps,
        workers=workers,
        overwrite=overwrite,
        root=root,
        progress=not quiet,
    )
    returns = episodes.team_returns
    print(f"{id_}: {episodes.num_transitions:,} transitions in {len(returns):,} episodes,", end=" ")
    print(f"return {returns.mean():.1f} ± {returns.std():.1f}")
    print(f"in {folder}")
