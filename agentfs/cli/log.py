"""`agentfs log`: the versions of a file."""

from pathlib import Path

import click

from agentfs.cli.arguments import PATH


@click.command()
@click.argument("path", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per version.")
def command(path: Path, as_json: bool) -> None:
    """List the versions of the file PATH on a mounted workspace, the newest first."""
    from agentfs.cli.amounts import columns, time_text
    from agentfs.cli.mount_queries import history_of
    from agentfs.cli.progress import echo_json

    versions = history_of(path)[::-1]
    if as_json:
        for version in versions:
            echo_json(version)
        return
    rows = [(str(one.version), time_text(one.time_ns), str(one.size_bytes), one.writer, str(one.position)) for one in versions]
    for line in columns([("VERSION", "TIME", "SIZE", "WRITER", "POSITION"), *rows]):
        click.echo(line)
