"""`agentfs create`: makes a workspace."""

import os
import uuid
from pathlib import Path

import click

from agentfs.cli.arguments import PATH, SPAN
from agentfs.cli.defaults import CONFIG_OPTION
from agentfs.cli.layout import check_name, data_root


@click.command()
@click.argument("name")
@click.option(
    "--journal",
    metavar="URL",
    help="What hosts share: postgresql://USER@HOST/DATABASE or s3://BUCKET/PREFIX?endpoint=…. Default: a file of this host's.",
)
@click.option(
    "--replica",
    "replicas",
    multiple=True,
    metavar="PLACE",
    help="A directory, or s3://BUCKET/PREFIX?endpoint=…&region=…; repeat it for more."
    " Default: two directories; with a journal in S3, its own place.",
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
@click.option(
    "--history",
    "history_seconds",
    type=SPAN,
    default="30d",
    show_default=True,
    metavar="SPAN",
    help="For how long what happened is kept, such as 12h, 30d, 8w or forever.",
)
@click.option("--root", type=PATH, help="Where workspaces are kept. Default: AGENTFS_ROOT, else XDG data.")
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    name: str,
    journal: str | None,
    replicas: tuple[str, ...],
    replication: str,
    write_quorum: int | None,
    durability: str,
    history_seconds: int,
    root: Path | None,
    as_json: bool,
) -> None:
    """Make a workspace called NAME.

    It is built aside and put in place at the end: it is there entirely or not at all. Other hosts mount it by the URL of its
    journal, if it has one.
    """
    from functools import partial

    import trio

    from agentfs.cli.amounts import path_text
    from agentfs.cli.creation import NewWorkspace, create_workspace
    from agentfs.cli.journal_place import Journals, journal_place
    from agentfs.cli.progress import echo_json
    from agentfs.cli.replica_place import open_place, place_text, replica_url
    from agentfs.runtime import SystemRuntime

    runtime = SystemRuntime()
    new = NewWorkspace(
        name=name,
        root=data_root(root),
        workspace=str(uuid.UUID(bytes=runtime.random_bytes(16), version=4)),
        journal=None if journal is None else journal_place(journal, workspace=check_name(name)),
        replicas=tuple(map(replica_url, replicas)),
        replication=replication,  # type: ignore[arg-type]
        write_quorum=0 if write_quorum is None else write_quorum,
        durability=durability,  # type: ignore[arg-type]
        history_seconds=history_seconds,
        time_ns=runtime.now_ns(),
        uid=os.geteuid(),
        gid=os.getegid(),
    )
    opening = partial(open_place, runtime=runtime)
    directory = trio.run(partial(create_workspace, new, journals=Journals(runtime), open_place=opening))
    places = [place_text(place.url, directory.path) for place in new.places()]
    if as_json:
        echo_json(
            {
                "name": name,
                "workspace": new.workspace,
                "directory": path_text(directory.path),
                "journal": new.journal.url if new.journal else None,
                "replication": replication,
                "durability": durability,
                "replicas": places,
            },
        )
        return
    click.echo(f"workspace {name} created in {path_text(directory.path)}")
    if new.journal:
        click.echo(f"  journal: {new.journal.text}")
    for number, place in enumerate(places, start=1):
        click.echo(f"  replica {number}: {place}")
    target = name if new.root == data_root(None) else path_text(directory.path)
    click.echo(f"mount it: agentfs mount {target} DIR")
    if new.journal:
        click.echo(f"on other hosts: agentfs mount '{new.journal.url}' DIR")
