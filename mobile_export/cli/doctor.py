"""`mobile-export doctor`: what is installed, and which steps work here."""

from __future__ import annotations

import dataclasses
import json
import platform

import typer

from mobile_export import __version__
from mobile_export.cli.options import JsonOption
from mobile_export.cli.say import table
from mobile_export.errors import EXIT_NO, EXIT_YES


def doctor(as_json: JsonOption = False) -> int:
    """Say what is installed and which steps work here; exit code 1 if one of those every installation has does not.

    Example: mobile-export doctor
    """
    from mobile_export.measure.tools import steps_here

    steps = steps_here()
    broken = [step for step in steps if step.required and not step.works]
    if as_json:
        facts = [{**dataclasses.asdict(step), "works": step.works} for step in steps]
        typer.echo(json.dumps({"mobile_export": __version__, "python": platform.python_version(), "steps": facts}))
        return EXIT_NO if broken else EXIT_YES
    rows = []
    for step in steps:
        needs = ", ".join(
            f"{need.name} {need.version or 'missing'}" + ("" if need.met or need.version is None else f" (needs {need.wanted})")
            for need in step.needs
        )
        rows.append((step.name, "yes" if step.works else "NO", needs))
    typer.echo(f"mobile-export {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}\n")
    typer.echo(table(("step", "works", "needs"), rows, left=3))
    for step in steps:
        if not step.works:
            typer.echo(f"\n{step.name}: {step.then}")
    return EXIT_NO if broken else EXIT_YES
