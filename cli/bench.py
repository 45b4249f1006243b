"""om2p-train bench: what an update, an evaluation and an action cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet, Settings, parse_names

_RECIPES = "bc,om2p,ma-cql,omar,ma-fql,ma-sfbc,vgm2p"


def bench(
    recipes: Annotated[str, typer.Option(help="Names of recipes, with commas.")] = _RECIPES,
    env: Annotated[str, typer.Option(help="Task whose sizes are taken; no data set is needed.")] = "cn",
    seeds: Annotated[str, typer.Option(help="Numbers of stacked seeds, with commas.")] = "1,5,10",
    scale: Annotated[str, typer.Option(help="cpu (2x128, batch 128) or paper (4x512, batch 256).")] = "paper",
    precision: Annotated[str, typer.Option(help="full, tf32, bf16, or several with commas.")] = "full",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all cores.", min=1)] = None,
    repeats: Annotated[int, typer.Option(help="Measurements of each; medians are shown.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.", min=0.01)] = 2.0,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Beside om2p: a plain PyTorch loop, and JAX if installed.")
    ] = True,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time single actions, too.")] = True,
    set_: Settings = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    quiet: Quiet = False,
) -> None:
    """Time updates, evaluations and actions, and measure memory: a table beside the paper's figures."""
    import torch

    from om2p_data.errors import UserError, unknown
    from om2p_data.measuring import print_table, write_results
    from om2p_data.storage import ensure_writable
    from om2p_train.bench import measure
    from om2p_train.compute import Precision, usable_device
    from om2p_train.config import Scale

    scales, precisions = ({entry.value: entry for entry in kind} for kind in (Scale, Precision))
    if scale not in scales:
        raise unknown("scale", scale, scales)
    wanted = parse_names("--precision", precision)
    for name in wanted:
        if name not in precisions:
            raise unknown("precision", name, precisions)
    try:
        counts = [int(count) for count in seeds.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UserError(f"--seeds takes numbers of seeds such as 1,5,10, not {seeds!r}")
    if out is not None:
        ensure_writable(out.parent)
    usable_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    plan = measure.Plan(
        recipes=parse_names("--recipes", recipes),
        task=env,
        seeds=counts,
        settings=tuple(set_ or ()),
        scale=Scale(scale),
        precisions=wanted,
        device=device,
        repeats=repeats,
        seconds=seconds,
        peers=peers,
    )
    rows = measure.updates(plan, not quiet)
    for table in measure.tables(rows):
        print_table(table)
        print()
    print(f"{measure.PAPER}\n")
    acted = measure.actions(plan, not quiet) if latency else []
    if acted:
        print_table(acted)
    if out is not None:
        settings = {"scale": scale, "task": env, "device": device, "threads": torch.get_num_threads()}
        settings |= {"repeats": repeats, "seconds": seconds, "set": list(plan.settings)}
        write_results(out, [*rows, *acted], settings, "om2p", "torch", "numpy", "jax", "numba")
        print(f"\nwrote {out}")
