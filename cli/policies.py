"""om2p-train evaluate, render and export: what is done with trained teams."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet

_File = Annotated[Path, typer.Argument(help="A policy file: runs/.../policies/seed0.safetensors.")]


def evaluate(
    policies: Annotated[list[Path], typer.Argument(help="Policy files, e.g. runs/.../policies/*.safetensors.")],
    episodes: Annotated[int, typer.Option(help="Fresh episodes of each.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of the episodes and of the action noise.", min=0)] = 1,
    env: Annotated[str | None, typer.Option(help="Play in this task instead of the one trained for.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write every episode's return here.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quiet: Quiet = False,
) -> None:
    """Score trained teams in fresh episodes: the same ones for each of them."""
    from om2p_train import scores

    found = scores.evaluate(policies, episodes, seed, env, device=device, progress=not quiet)
    if json_ is not None:
        scores.write(found, json_, seed)
    print(scores.table(found))


def render(
    policy: _File,
    out: Annotated[Path, typer.Option(help="GIF or MP4 to write.")] = Path("episode.gif"),
    seed: Annotated[int, typer.Option(help="Seed of the world and of the action noise.", min=0)] = 0,
    episodes: Annotated[int, typer.Option(help="Episodes, one after the other.", min=1)] = 1,
    max_steps: Annotated[int | None, typer.Option(help="Stop each episode after this many steps.", min=1)] = None,
) -> None:
    """Draw episodes of a trained team as a GIF or MP4."""
    from om2p_data.inspect.pictures import FRAMES_PER_SECOND, writer_of
    from om2p_train import load_policy
    from om2p_train.recovery import film

    write = writer_of(out)
    team = load_policy(policy, seed)
    frames, returns = [], []
    for episode in range(episodes):
        pictures, team_return = film(team.environment, team.act, seed=seed + episode, max_steps=max_steps)
        frames += pictures
        returns.append(team_return)
    write(frames, out, FRAMES_PER_SECOND)
    print(f"wrote {out}: {len(frames)} frames, returns {', '.join(f'{value:.1f}' for value in returns)}")


def export(
    policy: _File,
    out: Annotated[Path, typer.Option(help="File to write: .onnx or .pt2.")],
    format_: Annotated[
        str | None, typer.Option("--format", help="onnx or torch (a program of torch.export). Default: the file's.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Export this agent alone. Default: the whole team.")] = None,
) -> None:
    """Write a trained team as a graph that runs without this package, and check that it acts the same."""
    from om2p_train import load_policy
    from om2p_train.export import Format
    from om2p_train.export import export as write

    form = Format.of(out, format_)
    found = write(load_policy(policy), out, form, agent)
    signature = found.signature
    inputs = ", ".join(f"{name} {list(shape)}" for name, shape in signature.inputs.items())
    print(f"wrote {out}: {', '.join(signature.agents)}; takes {inputs}, gives actions {list(signature.output)}")
    print(f"largest difference to the policy: {found.difference:.1e}")
    times = (1e3 * seconds for seconds in (found.policy_seconds, found.exported_seconds))
    print("one observation on one thread: policy {:.2f} ms, exported {:.2f} ms".format(*times))
