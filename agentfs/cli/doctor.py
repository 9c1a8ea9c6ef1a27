"""`agentfs doctor`: says what mounting needs and lacks on this machine."""

from typing import Final

import click

_SIGNS: Final = {"ok": "✓", "missing": "✗", "optional": "–"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per check.")
def command(as_json: bool) -> int:
    """Check each thing that mounting needs, and say how to mend what is missing.

    Exit code 1 if something is missing; what only some mounts need is marked – and does not count.
    """
    from agentfs.cli.checks import run_checks
    from agentfs.cli.failures import GENERAL
    from agentfs.cli.progress import echo_json

    missing = False
    for check in run_checks():
        missing = missing or check.state == "missing"
        if as_json:
            echo_json(check)
            continue
        click.echo(f"{_SIGNS[check.state]} {check.name}: {check.detail}")
        if check.mend:
            click.echo(f"    {check.mend}")
    return GENERAL if missing else 0
