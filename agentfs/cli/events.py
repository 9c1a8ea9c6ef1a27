"""`agentfs events`: the change feed of a workspace, as lines."""

import fcntl
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from agentfs.cli.arguments import PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from agentfs.cli.workspace_source import Source
    from agentfs.workspace.events import Event
    from agentfs.workspace.feed import Feed, Place

_PLACE: Final = re.compile(r"([0-9]{1,18})(?::([0-9]{1,18}))?")

_WIDTHS: Final = (12, 19, 8, 7, 10, 20)
"""Of the columns in front of the path: a feed has no end from which their widths could be told."""

_HEADINGS: Final = ("POSITION", "TIME", "KIND", "VERSION", "SIZE", "WRITER", "PATH")


@click.command()
@click.argument("source", required=False, metavar="[DIRECTORY|WORKSPACE]")
@click.option("--since", metavar="POSITION", help="Begin behind POSITION, or behind one event of it: POSITION:INDEX.")
@click.option("--follow", is_flag=True, help="Go on with what is committed from now on. Ctrl-C ends it.")
@click.option("--root", type=PATH, help="Where workspaces are kept. Default: AGENTFS_ROOT, else XDG data.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event (docs/format.md has the keys).")
def command(source: str | None, since: str | None, follow: bool, root: Path | None, as_json: bool) -> None:
    """Print what was committed to a workspace: a line for each file created, modified, moved or deleted.

    The workspace is named as for fsck, or by a DIRECTORY that lies in a mount of it; a plain name is a workspace's if there is
    one. Without either: that of the working directory, or else of the only mount. It need not be mounted.

    Without --since everything that is kept is printed, or with --follow only what is new. To go on after an interruption, give
    --since the POSITION of the last line that was read: nothing is missed, and nothing comes twice.
    """
    import trio

    from agentfs.cli.workspace_source import find_source

    after = _place(since, follow=follow)
    found = find_source(source, root)
    try:
        trio.run(_print_events, found, after, follow, as_json)
    except BrokenPipeError:
        # Whoever read has had enough. What is still in the buffer must not be complained of at exit.
        _discard_output()


def _place(since: str | None, *, follow: bool) -> "Place | None":
    """Where to begin; None is the end. Raises BadParameter."""
    from agentfs.model.ids import Position
    from agentfs.workspace.feed import ALL, BEGINNING, Place

    if since is None:
        return None if follow else BEGINNING
    found = _PLACE.fullmatch(since)
    if found is None:
        raise click.BadParameter(f"{since!r} is neither POSITION nor POSITION:INDEX", param_hint="--since")
    return Place(Position(int(found[1])), ALL if found[2] is None else int(found[2]))


async def _print_events(source: "Source", after: "Place | None", follow: bool, as_json: bool) -> None:
    """Everything behind `after`; with `follow` until nobody reads it any more."""
    from functools import partial

    import trio

    from agentfs.cli.layout import log_path
    from agentfs.cli.logs import logging_to
    from agentfs.cli.stack import open_replica, open_source
    from agentfs.runtime import SystemRuntime
    from agentfs.workspace.feed import BEGINNING, open_feed
    from agentfs.workspace.fetching import fetch_chosen

    runtime = SystemRuntime()
    with logging_to(log_path(source.name, Path("events")), runtime=runtime), trio.CancelScope() as reading:
        # Not in a nursery: that would wrap the exception of Ctrl-C in a group.
        trio.lowlevel.spawn_system_task(_cancel_when_closed, reading)
        async with open_source(source, runtime=runtime) as opened:
            fetch = partial(fetch_chosen, open_store=partial(open_replica, opened, runtime=runtime), runtime=runtime)
            async with open_feed(opened.journal, after, fetch) as feed:
                if after == BEGINNING and feed.position:
                    click.echo(f"agentfs: what happened up to position {feed.position} is not kept any more", err=True)
                await _print_feed(feed, follow=follow, as_json=as_json)


async def _print_feed(feed: "Feed", *, follow: bool, as_json: bool) -> None:
    await _pass_over(feed)
    if not as_json:
        click.echo(_row(_HEADINGS))
    while follow or feed.position < feed.tail:
        _echo(await feed.read(), as_json=as_json)
        if follow:
            await feed.wait()


async def _pass_over(feed: "Feed") -> None:
    """Replay what comes before the first line, which may take a while: somebody at a terminal sees how far it is."""
    from agentfs.cli.progress import progress

    if not sys.stderr.isatty():
        await feed.pass_over(lambda done, total: None)
        return
    with progress("reading the journal", unit="items", as_json=False) as shown:
        await feed.pass_over(shown.advance)


async def _cancel_when_closed(reading: "trio.CancelScope") -> None:
    """Whoever reads our output may go while there is nothing to print: then a pipe's writing end reports an error (poll(2))."""
    import trio

    output = _output()
    if output is not None and _is_writing_end(output):
        await trio.lowlevel.wait_readable(output)
        reading.cancel()


def _is_writing_end(descriptor: int) -> bool:
    """Whether it is a pipe's end for writing alone: one that can be read, too, is readable because of what was written."""
    only_writes = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    return only_writes and stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def _discard_output() -> None:
    output = _output()
    if output is not None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, output)
        os.close(nothing)


def _output() -> int | None:
    """The descriptor that is printed to, if there is one."""
    try:
        return sys.stdout.fileno()
    except (OSError, AttributeError):
        return None


def _echo(events: "list[Event]", *, as_json: bool) -> None:
    """Print all of a batch, then flush."""
    if events:
        click.echo("\n".join(map(_record if as_json else _line, events)))


def _record(event: "Event") -> str:
    import msgspec

    from agentfs.cli.amounts import path_text

    record = msgspec.structs.asdict(event)
    for key in ("path", "old_path"):
        record[key] = None if record[key] is None else path_text(record[key])
    return msgspec.json.encode(record).decode()


def _line(event: "Event") -> str:
    from agentfs.cli.amounts import bytes_text, time_text

    return _row(
        (
            f"{event.position}:{event.index}",
            time_text(event.time_ns),
            event.kind,
            "-" if event.version is None else str(event.version),
            "-" if event.size_bytes is None else bytes_text(event.size_bytes),
            event.writer or "-",
            _about(event),
        )
    )


def _about(event: "Event") -> str:
    """What it happened to: a path, two for a move, or a session."""
    from agentfs.cli.amounts import path_text
    from agentfs.workspace.paths import printable

    if event.path is None:
        return f"session {event.subject_session} ({event.subject})"
    slash = "/" if event.directory and event.path != b"/" else ""
    old, new = (printable(path_text(path)) + slash for path in (event.old_path or b"", event.path))
    if event.old_path is None:
        return new
    return f"{old} {'<->' if event.exchange else '->'} {new}"


def _row(cells: "Sequence[str]") -> str:
    *narrow, last = cells
    return "  ".join([*(cell.ljust(width) for cell, width in zip(narrow, _WIDTHS, strict=True)), last])
