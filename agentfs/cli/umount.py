"""`agentfs umount`: saves what is unsaved, takes the mount down, and waits for its daemon to end."""

import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import socket

    from agentfs.cli.control import DrainStep
    from agentfs.cli.mountinfo import Mounted
    from agentfs.cli.progress import Progress


@click.command()
@click.argument("directory", metavar="DIRECTORY|WORKSPACE")
@click.option(
    "--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long to save, and to wait for the end."
)
@click.option(
    "--force", is_flag=True, help="Unmount although something is unsaved or in use; it is recovered at the next mount."
)
@click.option("--json", "as_json", is_flag=True, help="Print records of the progress and of the result.")
def command(directory: str, timeout: float, force: bool, as_json: bool) -> None:
    """Unmount DIRECTORY once everything is saved; or the one mount here of a workspace, by its name or its journal's URL.

    If something cannot be saved in time it is named, and the mount stays, unless --force is given.
    """
    from agentfs.cli.amounts import path_text
    from agentfs.cli.progress import echo_json

    farewell = _unmount(_mountpoint(directory), timeout=timeout, force=force, as_json=as_json)
    if as_json:
        echo_json({"event": "unmounted", "mountpoint": path_text(farewell.mountpoint), **farewell.facts()})
        return
    click.echo(f"unmounted {path_text(farewell.mountpoint)}{farewell.remark()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """How a mount ended: whether its daemon was gone already, and the names of what was not saved."""

    mountpoint: Path
    dead: bool = False
    undrained: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """What `--json` says beside the mountpoint."""
        return {"dead": self.dead, "undrained": self.undrained}

    def remark(self) -> str:
        """What a person should know."""
        if self.dead:
            return "; its daemon was gone: what it had staged is recovered at the next mount"
        if self.undrained:
            return f"; not saved, kept for the next mount: {_named(self.undrained)}"
        return ""


def _mountpoint(text: str) -> Path:
    """The directory that is meant. Raises NotFound and Invalid if a workspace has no mount here, or several."""
    from agentfs.cli.amounts import path_text
    from agentfs.cli.layout import data_root
    from agentfs.cli.mountinfo import canonical
    from agentfs.cli.workspace_source import mounts_named
    from agentfs.model.errors import Invalid, NotFound

    named = mounts_named(text, data_root(None))
    if named is None:
        return canonical(Path(text))
    if len(named) > 1:
        where = ", ".join(path_text(mounted.mountpoint) for mounted in named)
        raise Invalid(f"{text} is mounted on {where}: name one of these")
    if not named:
        raise NotFound(f"{text} is not mounted here: `agentfs mount` lists what is mounted")
    return named[0].mountpoint


def _unmount(mountpoint: Path, *, timeout: float, force: bool, as_json: bool) -> Farewell:
    from agentfs.cli.mountinfo import mount_at
    from agentfs.cli.records import find_record
    from agentfs.cli.unmounting import clear_if_dead, unmount

    mounted = mount_at(mountpoint)
    if mounted is None or not mounted.ours:
        raise _not_a_mount(mountpoint)
    if clear_if_dead(mounted):
        return Farewell(mountpoint=mountpoint, dead=True)
    if find_record(mounted) is None:
        click.echo(f"agentfs: no daemon of {mountpoint} is known to this user: unmounting without saving first", err=True)
        unmount(mountpoint, lazily=force)
        return Farewell(mountpoint=mountpoint)
    return _leave(mounted, timeout=timeout, force=force, as_json=as_json)


def _leave(mounted: "Mounted", *, timeout: float, force: bool, as_json: bool) -> Farewell:
    from agentfs.cli.control import connected, peer_pid
    from agentfs.cli.records import find_record
    from agentfs.cli.unmounting import unmount
    from agentfs.model.errors import Busy, Unavailable

    mountpoint = mounted.mountpoint
    record = find_record(mounted)
    assert record is not None, "the caller has found the record"
    with connected(Path(record.control), mountpoint, timeout_seconds=timeout + 5) as connection:
        daemon = os.pidfd_open(peer_pid(connection))
        try:
            undrained = _drain(connection, mountpoint, timeout=timeout, as_json=as_json)
            if undrained and not force:
                raise Unavailable(
                    f"{mountpoint} stays mounted, not saved: {_named(undrained)};"
                    f" --force leaves it to the next mount, log: {record.log}",
                )
            try:
                unmount(mountpoint)
            except Busy:
                if not force:
                    raise
                unmount(mountpoint, lazily=True)
            _wait_for_end(daemon, mountpoint, timeout=timeout, log=record.log)
        finally:
            os.close(daemon)
    return Farewell(mountpoint=mountpoint, undrained=undrained)


def _drain(connection: "socket.socket", mountpoint: Path, *, timeout: float, as_json: bool) -> tuple[str, ...]:
    from agentfs.cli.control import Drained, DrainRequest, DrainStep, exchange
    from agentfs.cli.progress import progress

    undrained: tuple[str, ...] = ()
    with progress("saving", unit="bytes", as_json=as_json) as shown:
        for reply in exchange(connection, DrainRequest(timeout), mountpoint):
            if isinstance(reply, DrainStep):
                _show(shown, reply)
            elif isinstance(reply, Drained):
                undrained = tuple(reply.undrained)
    return undrained


def _show(shown: "Progress", step: "DrainStep") -> None:
    note = f"({step.dirty_files} files, {step.pending_transactions} transactions to go)" if step.dirty_files else ""
    shown.advance(step.saved_bytes, step.total_bytes, note)


def _wait_for_end(daemon: int, mountpoint: Path, *, timeout: float, log: str) -> None:
    """A pidfd becomes readable when its process has ended (pidfd_open(2))."""
    from agentfs.model.errors import Unavailable

    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    if not poll.poll(timeout * 1000):
        raise Unavailable(f"{mountpoint} is unmounted, but its daemon is still at work after {timeout:g} s; log: {log}")


def _named(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


def _not_a_mount(mountpoint: Path) -> Exception:
    from agentfs.cli.amounts import path_text
    from agentfs.cli.mountinfo import our_mounts
    from agentfs.model.errors import NotFound

    here = ", ".join(path_text(mounted.mountpoint) for mounted in our_mounts()) or "nothing"
    return NotFound(f"{path_text(mountpoint)} is not a mounted workspace; mounted: {here}")
