"""om2p-train: learn teams from data sets, and look at the results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet, Settings, guarded, parse_seeds

app = typer.Typer(
    help="Train OM2P and its baselines from Minari data sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def run(
    dataset: Annotated[str, typer.Option(help="Data set id, e.g. om2p/cooperative-navigation/medium-v0.")],
    algo: Annotated[
        str, typer.Option(help="Name of a recipe (see `om2p-train recipes`) or a recipe file (TOML).")
    ] = "om2p",
    seeds: Annotated[str, typer.Option(help="Seeds, stacked in one run: 0-4 or 0,2,5.")] = "0-2",
    scale: Annotated[str, typer.Option(help="cpu (small networks, few updates) or paper (4x512, a million).")] = "cpu",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    set_: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<task>/<tier>/<recipe>.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of data sets. Default: Minari's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there already.")] = False,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard/--no-tensorboard", help="Write TensorBoard events. Default: if it is installed."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all cores.", min=1)] = None,
    quiet: Quiet = False,
) -> None:
    """Train one recipe on one data set, all seeds in one run."""
    import torch

    from om2p_data import dataset as datasets
    from om2p_data.errors import unknown
    from om2p_data.tiers import Tier
    from om2p_train import config, report, trainer

    if scale not in [entry.value for entry in config.Scale]:
        raise unknown("scale", scale, [entry.value for entry in config.Scale])
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = parse_seeds(seeds)
    config.check_exists(algo)
    data = datasets.load(dataset, root)
    task = trainer.task_of(data)
    tier = next((entry for entry in Tier if entry.value == data.metadata["tier"]), None)
    recipe = config.load(algo, task.name, tier, config.Scale(scale), set_ or [])
    folder = out or Path("runs", task.name, data.metadata["tier"], recipe.name)
    trainer.train(
        data,
        recipe,
        chosen,
        folder,
        device=device,
        overwrite=overwrite,
        tensorboard=tensorboard,
        progress=not quiet,
    )
    print(report.table([report.read(folder)]))
    print(f"\nin {folder}")


@app.command("report")
def report_(
    runs: Annotated[list[Path], typer.Argument(help="Run folders on one data set.")],
    out: Annotated[Path | None, typer.Option(help="Folder for table.md and curves.png.")] = None,
) -> None:
    """Print the table of final returns, and draw the learning curves."""
    from om2p_data.errors import UserError
    from om2p_train import report

    found = report.read_all(runs)
    text = report.table(found)
    print(text)
    if out is not None:
        report.curves(found, out / "curves.png")
        try:
            (out / "table.md").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {out / 'table.md'}: {error.strerror}") from error
        print(f"\nwrote {out / 'table.md'} and {out / 'curves.png'}")


@app.command()
def render(
    policy: Annotated[Path, typer.Argument(help="A policy file: runs/.../policies/seed0.safetensors.")],
    out: Annotated[Path, typer.Option(help="GIF to write.")] = Path("episode.gif"),
    seed: Annotated[int, typer.Option(help="Seed of the world and of the action noise.", min=0)] = 0,
    episodes: Annotated[int, typer.Option(help="Episodes, one after the other.", min=1)] = 1,
    max_steps: Annotated[int | None, typer.Option(help="Stop each episode after this many steps.", min=1)] = None,
) -> None:
    """Draw episodes of a trained team as a GIF."""
    from om2p_data.inspect import play, save_gif
    from om2p_train import load_policy

    team = load_policy(policy, seed)
    frames, returns = [], []
    for episode in range(episodes):
        pictures, team_return = play(team.card["task"], team.act, seed=seed + episode, max_steps=max_steps)
        frames += pictures
        returns.append(team_return)
    save_gif(frames, out)
    print(f"wrote {out}: {len(frames)} frames, returns {', '.join(f'{value:.1f}' for value in returns)}")


@app.command()
def recipes() -> None:
    """List the bundled recipes."""
    from om2p_data.recipe import bundled

    for name in bundled("train"):
        print(name)


def main() -> None:
    """Entry point."""
    guarded(app)
