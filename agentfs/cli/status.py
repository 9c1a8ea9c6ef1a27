"""`agentfs status`: what a mount says of itself."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agentfs.cli.arguments import PATH

if TYPE_CHECKING:
    from agentfs.cli.mountinfo import Mounted
    from agentfs.workspace.status import WorkspaceStatus


@click.command()
@click.argument("directory", required=False, type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per mount.")
def command(directory: Path | None, as_json: bool) -> int:
    """Show position, unsaved work, leases, sessions, replicas and cache of the mount that DIRECTORY lies in.

    Without DIRECTORY: the mount of the working directory, or else every mount.
    """
    from agentfs.cli.each_mount import each_mount
    from agentfs.cli.mount_queries import status_of

    return each_mount(
        directory,
        lambda mounted: _show(mounted, status_of(mounted), as_json=as_json),
        blank_between=not as_json,
    )


def _show(mounted: "Mounted", status: "WorkspaceStatus", *, as_json: bool) -> None:
    import msgspec

    from agentfs.cli.amounts import columns, path_text
    from agentfs.cli.progress import echo_json

    if as_json:
        echo_json({"mountpoint": path_text(mounted.mountpoint), **msgspec.to_builtins(status)})
        return
    for line in columns([("mountpoint", path_text(mounted.mountpoint)), *_facts(status)]):
        click.echo(line)


def _facts(status: "WorkspaceStatus") -> list[tuple[str, str]]:
    from agentfs.cli.amounts import bytes_text, seconds_text, time_text

    facts = [
        ("workspace", f"{status.name} ({status.workspace})"),
        ("settings", f"durability {status.durability}, replication {status.replication}"),
        ("position", str(status.position)),
        ("holds", f"{status.files} files, {bytes_text(status.stored_bytes)}"),
        (
            "unsaved",
            f"{status.pending_transactions} transactions, {bytes_text(status.dirty_bytes)} in {status.dirty_files} files",
        ),
        ("oldest unsaved", seconds_text(status.oldest_unsaved_seconds) if status.oldest_unsaved_seconds else "-"),
        ("memory cache", f"{bytes_text(status.cache.memory_bytes)} of {bytes_text(status.cache.memory_max_bytes)}"),
        ("staging", bytes_text(status.cache.staging_bytes)),
        ("leases", f"{status.leases}, lost after {seconds_text(status.lease_ttl_seconds)} of silence"),
    ]
    for session in status.sessions:
        who = f"{session.host}:{session.pid}" + (f" ({session.label})" if session.label else "")
        this = ", this mount" if session.this else ""
        ttl = f", TTL {seconds_text(session.ttl_seconds)}" if session.ttl_seconds is not None else ""
        facts.append((f"session {session.session}", f"{who}, since {time_text(session.opened_ns)}{ttl}{this}"))
    for replica in status.replicas:
        missing = f", lacks {replica.missing_segments} segments" if replica.missing_segments else ""
        error = f", {replica.last_error}" if replica.last_error else ""
        facts.append((f"replica {replica.replica}", f"{replica.state}, {replica.url}{missing}{error}"))
    facts += [("recovered", folder) for folder in status.recovered]
    return facts
