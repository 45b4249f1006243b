"""om2p-data: what looks after the data sets on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Root


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("validate")(validate)
    app.command("repair")(repair)


def validate(
    dataset_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Data set ids.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All data sets on this machine.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Read all of the HDF5 file, even where flat columns hold the same.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
    root: Root = None,
) -> None:
    """Check data sets, ours and other people's: files, metadata, shapes, values, episode ends, physics.

    Exit code 0: no errors. 1: errors were found (warnings do not count). 2: bad input.
    """
    import dataclasses
    import json

    from om2p_data import validation
    from om2p_data.errors import UserError

    if bool(dataset_ids) == all_:
        raise UserError("name the data sets to check, or give --all (and not both)")
    found = {
        dataset_id: validation.validate(dataset_id, root, full=full)
        for dataset_id in dataset_ids or validation.stored_ids(root)
    }
    errors = 0
    for dataset_id, findings in found.items():
        counts = dict.fromkeys(validation.Severity, 0)
        for finding in findings:
            counts[finding.severity] += 1
        errors += counts[validation.Severity.ERROR]
        if json_:
            continue
        print(dataset_id)
        for finding in findings:
            print(f"  {finding}")
        print(f"  {counts[validation.Severity.ERROR]} errors, {counts[validation.Severity.WARNING]} warnings")
    if json_:
        plain = {
            dataset_id: [dataclasses.asdict(finding) | {"severity": finding.severity.value} for finding in findings]
            for dataset_id, findings in found.items()
        }
        print(json.dumps(plain, indent=1))
    if errors:
        raise typer.Exit(1)


def repair(
    dataset_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Look at every episode of this one. Default: all data sets."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Also delete what this and earlier repairs put aside.")
    ] = False,
    root: Root = None,
) -> None:
    """Mend what killed programs left behind, ours or Minari's own; one broken data set stops all of Minari's commands.

    Originals are put aside in .quarantine, and nothing that may hold data is deleted without --delete.
    """
    from om2p_data import repair as repairs

    actions = repairs.repair(dataset_id, root, dry_run=dry_run, delete=delete)
    for action in actions:
        print(action.describe(dry_run))
    if not actions:
        print("nothing to repair")
