"""`agentfs create`: makes a workspace."""

import os
import uuid
from pathlib import Path

import click

from agentfs.cli.arguments import PATH
from agentfs.cli.layout import data_root


@click.command()
@click.argument("name")
@click.option(
    "--replica",
    "replicas",
    multiple=True,
    metavar="PLACE",
    help="A directory, or s3://BUCKET/PREFIX?endpoint=…&region=…; repeat it for more. Default: two directories.",
)
@click.option(
    "--replication",
    type=click.Choice(["sync", "quorum", "async"]),
    default="sync",
    show_default=True,
    help="How many replicas hold the bytes before a write counts: all, most, or the first.",
)
@click.option("--write-quorum", type=int, metavar="COUNT", help="With quorum replication: how many, instead of most.")
@click.option(
    "--durability",
    type=click.Choice(["close", "fsync"]),
    default="close",
    show_default=True,
    help="What waits until its bytes are safe: close() as well, or only fsync().",
)
@click.option("--root", type=PATH, help="Where workspaces are kept. Default: AGENTFS_ROOT, else XDG data.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    name: str,
    replicas: tuple[str, ...],
    replication: str,
    write_quorum: int | None,
    durability: str,
    root: Path | None,
    as_json: bool,
) -> None:
    """Make a workspace called NAME.

    It is built aside and put in place at the end: it is there entirely or not at all.
    """
    from functools import partial

    import trio

    from agentfs.cli.amounts import path_text
    from agentfs.cli.creation import NewWorkspace, create_workspace
    from agentfs.cli.progress import echo_json
    from agentfs.cli.replica_place import open_place, place_text, replica_url
    from agentfs.runtime import SystemRuntime

    runtime = SystemRuntime()
    new = NewWorkspace(
        name=name,
        root=data_root(root),
        workspace=str(uuid.UUID(bytes=runtime.random_bytes(16), version=4)),
        replicas=tuple(map(replica_url, replicas)),
        replication=replication,  # type: ignore[arg-type]
        write_quorum=0 if write_quorum is None else write_quorum,
        durability=durability,  # type: ignore[arg-type]
        time_ns=runtime.now_ns(),
        uid=os.geteuid(),
        gid=os.getegid(),
    )
    opening = partial(open_place, runtime=runtime)
    directory = trio.run(partial(create_workspace, new, start_journal=_start_journal, open_place=opening))
    places = [place_text(place.url, directory.path) for place in new.places()]
    if as_json:
        echo_json(
            {
                "name": name,
                "workspace": new.workspace,
                "directory": path_text(directory.path),
                "replication": replication,
                "durability": durability,
                "replicas": places,
            },
        )
        return
    click.echo(f"workspace {name} created in {path_text(directory.path)}")
    for number, place in enumerate(places, start=1):
        click.echo(f"  replica {number}: {place}")
    target = name if root is None else path_text(directory.path)
    click.echo(f"mount it: agentfs mount {target} DIR")


async def _start_journal(path: Path, payload: bytes) -> None:
    """The embedded default: an SQLite journal."""
    from agentfs.journal.sqlite import create_sqlite_journal, open_sqlite_journal
    from agentfs.runtime import SystemRuntime

    create_sqlite_journal(path)
    async with open_sqlite_journal(path, runtime=SystemRuntime()) as journal:
        await journal.append(payload)
