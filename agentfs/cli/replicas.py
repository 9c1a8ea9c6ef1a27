"""`agentfs replicas`: lists a workspace's replicas, adds and removes one, and compares them with what they should hold."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agentfs.cli.arguments import PATH

if TYPE_CHECKING:
    from agentfs.cli.replica_work import Session, Target
    from agentfs.model.ids import ReplicaId
    from agentfs.workspace.scrub import ScrubReport

_DEFAULT: Final = "list"

_HEADINGS: Final = ("REPLICA", "STATE", "LATENCY", "LACKS", "BEHIND", "URL")


class _ListsByDefault(click.Group):
    """A group that takes what is no command's name as the arguments of `list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the command in front where the user left it out."""
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """What all of the commands take: the workspace, and where things are."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line."),
        click.option("--root", type=PATH, help="Where workspaces are kept. Default: AGENTFS_ROOT, else XDG data."),
        click.option("--cache-dir", type=PATH, help="Default: AGENTFS_CACHE_DIR, else XDG cache."),
        click.argument("source", required=False, metavar="[DIRECTORY|WORKSPACE]"),
    ):
        function = decorate(function)
    return function


@click.group(cls=_ListsByDefault, subcommand_metavar="[list] | add URL | remove REPLICA | scrub  [DIRECTORY|WORKSPACE]")
def command() -> None:
    """List, add, remove or check the stores that hold a workspace's bytes.

    \b
    agentfs replicas [list] [WORKSPACE]
    agentfs replicas add URL [WORKSPACE] [--no-wait]
    agentfs replicas remove REPLICA [WORKSPACE] [--force]
    agentfs replicas scrub [WORKSPACE] [--deep]

    The workspace is named, or is the one that a directory is a mount of; without either, that of the working directory, or else
    the only one that is mounted. It may be mounted anywhere or nowhere: mounts take up by themselves what is changed here.
    """


@command.command(_DEFAULT)
@_shared
def list_replicas(source: str | None, cache_dir: Path | None, root: Path | None, as_json: bool) -> int:
    """List the replicas: whether each answers here and now, and what it lacks.

    Exit code 6 if one does not answer.
    """
    import trio

    from agentfs.cli.amounts import columns
    from agentfs.cli.failures import UNAVAILABLE
    from agentfs.cli.progress import echo_json
    from agentfs.cli.replica_work import look_at_replicas

    rows = trio.run(look_at_replicas, _target(source, cache_dir, root))
    if as_json:
        for row in rows:
            echo_json(row)
    else:
        for line in columns([_HEADINGS, *(row.cells() for row in rows)]):
            click.echo(line)
        for row in rows:
            if row.error:
                click.echo(f"replica {row.replica}: {row.error}", err=True)
    return UNAVAILABLE if any(row.error for row in rows) else 0


@command.command()
@click.argument("url")
@_shared
@click.option("--no-wait", is_flag=True, help="Return at once; a mount of the workspace fills it in the background.")
def add(url: str, source: str | None, cache_dir: Path | None, root: Path | None, no_wait: bool, as_json: bool) -> int:
    """Make URL, a directory or s3://BUCKET/PREFIX?endpoint=…, one more replica, and wait until it holds everything.

    Who writes counts on it from now on, as the replication mode says. Interrupted, it goes on in any mount of the workspace.
    """
    from agentfs.cli.progress import echo_json, progress
    from agentfs.cli.replica_place import replica_url
    from agentfs.cli.replica_work import add_replica, run_session, wait_until_filled

    place = replica_url(url)

    async def work(session: "Session") -> None:
        number = await add_replica(session, place)
        if as_json:
            echo_json({"event": "added", "replica": number, "url": place})
        else:
            click.echo(f"replica {number} added: {place}")
        if no_wait:
            return
        with progress("filling", unit="bytes", as_json=as_json) as shown:
            await wait_until_filled(session, number, shown.advance)
        if as_json:
            echo_json({"event": "filled", "replica": number})
        else:
            click.echo(f"replica {number} lacks nothing")

    run_session(_target(source, cache_dir, root), work)
    return 0


@command.command()
@click.argument("replica", type=click.IntRange(min=1))
@_shared
@click.option("--force", is_flag=True, help="Remove it even if it alone holds what files need: those bytes are lost.")
def remove(replica: int, source: str | None, cache_dir: Path | None, root: Path | None, force: bool, as_json: bool) -> int:
    """Make REPLICA, a number, no replica any more. What it holds stays where it is.

    If it alone holds something that files need, that would be lost: then it is asked first, and nothing is done without a
    terminal to ask at, unless --force says so.
    """
    from agentfs.cli.failures import GENERAL
    from agentfs.cli.progress import echo_json
    from agentfs.cli.replica_work import remove_replica, run_session
    from agentfs.model.ids import ReplicaId

    async def work(session: "Session") -> str | None:
        return await remove_replica(session, ReplicaId(replica), lambda alone: force or _confirmed(replica, alone))

    url = run_session(_target(source, cache_dir, root), work)
    if url is None:
        click.echo("nothing is changed", err=True)
        return GENERAL
    if as_json:
        echo_json({"event": "removed", "replica": replica, "url": url})
    else:
        click.echo(f"replica {replica} removed; what it holds is still at {url}")
    return 0


def _confirmed(replica: int, alone: int) -> bool:
    """Whether the user wants to lose what only this replica holds. Raises Invalid where nobody can be asked."""
    from agentfs.cli.amounts import count_text
    from agentfs.model.errors import Invalid

    what = f"replica {replica} alone holds {count_text(alone, 'segment')} that files need"
    if not sys.stdin.isatty():
        raise Invalid(f"{what}: wait until the others lack nothing (`agentfs replicas list`), or lose them with --force")
    click.echo(f"{what}. They will be lost.", err=True)
    return click.confirm("Remove it all the same?", err=True)


@command.command()
@_shared
@click.option("--deep", is_flag=True, help="Read every object and compare its hash, instead of comparing listings only.")
def scrub(source: str | None, cache_dir: Path | None, root: Path | None, deep: bool, as_json: bool) -> int:
    """Compare what each replica holds with what it should hold, and repair it from the others.

    Exit code 7 if something was wrong and could not be repaired, 6 if a replica could not be looked at.
    """
    from agentfs.cli.failures import DAMAGED, UNAVAILABLE
    from agentfs.cli.progress import progress
    from agentfs.cli.replica_work import run_session

    async def work(session: "Session") -> "dict[ReplicaId, ScrubReport]":
        with progress("comparing", unit="bytes", as_json=as_json) as shown:
            return await session.workspace.replicas.scrub(deep=deep, report=shown.advance)

    reports = run_session(_target(source, cache_dir, root), work)
    for replica, report in reports.items():
        _show_scrubbed(replica, report, as_json=as_json)
    if any(report.unrepaired for report in reports.values()):
        return DAMAGED
    return UNAVAILABLE if any(report.error for report in reports.values()) else 0


def _show_scrubbed(replica: int, report: "ScrubReport", *, as_json: bool) -> None:
    from dataclasses import asdict

    from agentfs.cli.amounts import bytes_text, count_text
    from agentfs.cli.progress import echo_json

    if as_json:
        echo_json({"event": "scrubbed", "replica": replica, "clean": report.clean, **asdict(report)})
        return
    counts = [
        (report.missing, "missing"),
        (report.wrong_size, "of a wrong size"),
        (report.corrupt, "corrupt"),
        (report.found, "not known to be there"),
        (report.repaired, "repaired"),
        (report.unrepaired, "NOT repaired"),
    ]
    wrong = ", ".join(f"{count} {what}" for count, what in counts if count) or "nothing wrong"
    click.echo(f"{'✓' if report.clean else '✗'} replica {replica}: {count_text(report.listed, 'object')}, {wrong}")
    if report.unknown:
        click.echo(f"    {count_text(report.unknown, 'object')} of {bytes_text(report.unknown_bytes)} that nothing names")
    if report.error:
        click.echo(f"    {report.error}")


def _target(source: str | None, cache_dir: Path | None, root: Path | None) -> "Target":
    from agentfs.cli.layout import cache_root
    from agentfs.cli.replica_work import Target
    from agentfs.cli.workspace_source import find_source

    return Target(find_source(source, root), cache_root(cache_dir))
