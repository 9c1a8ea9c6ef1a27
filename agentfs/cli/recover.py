"""`agentfs recover`: rebuilds a workspace whose journal is lost from a replica."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agentfs.cli.arguments import PATH

if TYPE_CHECKING:
    from agentfs.cli.recovering import Outcome, Plan


@click.command()
@click.argument("name")
@click.option(
    "--from", "source", required=True, metavar="PLACE", help="The replica: a directory, or s3://BUCKET/PREFIX?endpoint=…."
)
@click.option(
    "--replica",
    "replicas",
    multiple=True,
    metavar="PLACE",
    help="Another replica that survived, which is read too, or an empty place for a new one; repeat it for more.",
)
@click.option("--journal", metavar="URL", help="Where the new journal is to be, as for create. Default: a file of this host's.")
@click.option("--root", type=PATH, help="Where workspaces are kept. Default: AGENTFS_ROOT, else XDG data.")
@click.option("--json", "as_json", is_flag=True, help="Print records of the progress and the result.")
def command(name: str, source: str, replicas: tuple[str, ...], journal: str | None, root: Path | None, as_json: bool) -> None:
    """Rebuild a workspace, whose journal is lost, under NAME.

    Everything up to the last entry is recovered that can be reached without a gap; which one that is, is printed. The
    workspace has the replicas that are named here, and no others. All that was mounted must be mounted again: what mounts
    had not saved, or saved behind that entry, is set aside in their recovery folders.
    """
    from functools import partial

    import trio

    from agentfs.cli.journal_place import journal_place
    from agentfs.cli.layout import check_name, data_root, log_path
    from agentfs.cli.logs import logging_to
    from agentfs.cli.progress import progress
    from agentfs.cli.recovering import Plan, recover_workspace
    from agentfs.cli.replica_place import replica_url
    from agentfs.runtime import SystemRuntime

    runtime = SystemRuntime()
    plan = Plan(
        name=name,
        root=data_root(root),
        source=replica_url(source),
        replicas=tuple(map(replica_url, replicas)),
        journal=None if journal is None else journal_place(journal, workspace=check_name(name)),
        time_ns=runtime.now_ns(),
    )
    with (
        logging_to(log_path(name, Path("recover")), runtime=runtime),
        progress("recovering", unit="items", as_json=as_json) as shown,
    ):
        outcome = trio.run(partial(recover_workspace, plan, runtime, shown.advance))
    if as_json:
        _show_json(plan, outcome)
    else:
        _show(plan, outcome, root)


def _show(plan: "Plan", outcome: "Outcome", root: Path | None) -> None:
    from agentfs.cli.amounts import count_text, path_text, time_text
    from agentfs.cli.recovering import replica_texts
    from agentfs.cli.replica_place import place_text
    from agentfs.workspace.paths import printable

    path = plan.directory.path
    when = f", of {time_text(outcome.time_ns)}" if outcome.time_ns is not None else ""
    click.echo(f"workspace {plan.name} recovered in {path_text(path)}, up to position {outcome.position}{when}")
    if outcome.checkpoint:
        click.echo(f"  from the checkpoint at position {outcome.checkpoint}")
    for line in outcome.damage:
        click.echo(f"  damaged: {printable(line)}")
    if outcome.unusable is not None:
        click.echo(
            f"  lost: entry {outcome.position + 1} is in none of the replicas, so that what there is of those up to"
            f" {outcome.unusable} cannot be used; it is set aside there"
        )
    for text in replica_texts(outcome, path):
        click.echo(f"  {text}")
    for replica in outcome.dropped:
        click.echo(f"  no member any more: replica {replica.replica}, {place_text(replica.url, path)}")
    target = plan.name if root is None else path_text(path)
    if outcome.unheld:
        click.echo(
            f"  {count_text(outcome.unheld, 'segment')} that files need may be lost: `agentfs replicas scrub {target}` looks"
        )
    click.echo(f"mount it: agentfs mount {target} DIR")


def _show_json(plan: "Plan", outcome: "Outcome") -> None:
    from agentfs.cli.amounts import path_text
    from agentfs.cli.progress import echo_json

    echo_json(
        {
            "event": "recovered",
            "name": plan.name,
            "directory": path_text(plan.directory.path),
            "journal": plan.journal.url if plan.journal else None,
            **outcome._asdict(),
        }
    )
