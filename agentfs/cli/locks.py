"""`agentfs locks`: lists who holds and who waits for locks, and takes a lock away from a mount that will not give it back."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from agentfs.cli.arguments import PATH

if TYPE_CHECKING:
    from agentfs.cli.mountinfo import Mounted
    from agentfs.workspace.status import LockRow

_DEFAULT: Final = "list"

_HEADINGS: Final = ("PATH", "KIND", "MODE", "RANGE", "STATE", "HOLDER", "PID", "AGE", "TTL")

_JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")


class _ListsByDefault(click.Group):
    """A group that takes what is no command's name as the arguments of `list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the command in front where the user left it out."""
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListsByDefault, subcommand_metavar="[DIRECTORY] | break PATH")
def command() -> None:
    """List who holds and who waits for locks, or break them.

    \b
    agentfs locks [DIRECTORY] [--json]         the same as agentfs locks list
    agentfs locks break PATH [--yes] [--json]

    A directory called `break` or `list` is named as ./break or ./list.
    """


@command.command(_DEFAULT)
@click.argument("directory", required=False, metavar="[DIRECTORY|WORKSPACE]")
@_JSON_OPTION
def list_locks(directory: str | None, as_json: bool) -> int:
    """List the locks and leases of the workspace that DIRECTORY lies in, and who waits for them.

    \b
    held     a process of this mount has the lock
    idle     this mount has the lease, none of its processes the lock: it is given up when it is asked for
    leased   another mount has the lease
    waiting  it was asked for, and something of the above is in the way

    TTL is how long that mount may stay silent before it is judged dead. A workspace's name or its journal's URL means all of
    its mounts here. Without either: the mount of the working directory, or else every mount.
    """
    from agentfs.cli.amounts import path_text
    from agentfs.cli.each_mount import each_mount
    from agentfs.cli.mount_queries import locks_of

    def show(mounted: "Mounted") -> None:
        rows = locks_of(mounted)
        if as_json:
            _echo_records(mounted, rows)
            return
        if directory is None:
            click.echo(f"{path_text(mounted.mountpoint)}:")
        _echo_table(rows)

    return each_mount(directory, show, blank_between=not as_json)


@command.command("break")
@click.argument("path", type=PATH)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_JSON_OPTION
def break_path(path: Path, yes: bool, as_json: bool) -> int:
    """Take the locks on the file PATH away from the other mounts that hold them.

    Those mounts are fenced: nothing they have not committed reaches the workspace any more. They go on by themselves under a
    new session; their unsaved changes to locked files are kept in their recovery folder.
    """
    from agentfs.cli.amounts import path_text
    from agentfs.cli.failures import GENERAL
    from agentfs.cli.mount_queries import break_locks, locks_of, mount_of
    from agentfs.cli.mountinfo import canonical
    from agentfs.cli.progress import echo_json

    whole = canonical(path)
    mounted = mount_of(whole)
    rows = locks_of(mounted)  # This answers in bounded time; a mount that does would answer stat() as well.
    ino = whole.stat().st_ino
    others = [row for row in rows if row.ino == ino and row.state == "leased"]
    if others and not yes and not _confirmed(others):
        click.echo("nothing is changed", err=True)
        return GENERAL
    fenced = break_locks(mounted, whole)
    if as_json:
        echo_json({"event": "broken", "path": path_text(whole), "fenced": fenced})
    else:
        click.echo(_outcome(path_text(whole), fenced))
    return 0


def _confirmed(others: "list[LockRow]") -> bool:
    """Whether the user, who is shown whom it hits, wants to go on. Raises Invalid where nobody can be asked."""
    from agentfs.model.errors import Invalid

    holders = ", ".join(dict.fromkeys(row.holder for row in others))
    if not sys.stdin.isatty():
        raise Invalid(f"{holders} would lose their locks and unsaved changes, and there is no terminal to ask: --yes goes on")
    _echo_table(others, err=True)
    click.echo(f"{holders} will be fenced: their unsaved changes to locked files are kept in their recovery folder.", err=True)
    return click.confirm("Break the locks?", err=True)


def _outcome(path: str, fenced: list[str]) -> str:
    if not fenced:
        return f"no other mount holds a lock on {path}"
    return f"fenced {', '.join(fenced)}; their unsaved changes to locked files are kept in their recovery folder"


def _echo_records(mounted: "Mounted", rows: "list[LockRow]") -> None:
    import msgspec

    from agentfs.cli.amounts import path_text
    from agentfs.cli.progress import echo_json

    for row in rows:
        echo_json({"mountpoint": path_text(mounted.mountpoint), **msgspec.to_builtins(row)})


def _echo_table(rows: "list[LockRow]", *, err: bool = False) -> None:
    from agentfs.cli.amounts import columns

    if not rows:
        click.echo("no locks", err=err)
        return
    for line in columns([_HEADINGS, *map(_cells, rows)]):
        click.echo(line, err=err)


def _cells(row: "LockRow") -> tuple[str, ...]:
    from agentfs.cli.amounts import seconds_text

    return (
        row.path,
        row.space,
        row.mode,
        _range(row.first, row.last),
        row.state,
        row.holder,
        str(row.pid or "-"),
        seconds_text(row.age_seconds),
        "-" if row.ttl_seconds is None else seconds_text(row.ttl_seconds),
    )


def _range(first: int, last: int | None) -> str:
    if last is None:
        return "all" if first == 0 else f"{first}-"
    return f"{first}-{last}"
