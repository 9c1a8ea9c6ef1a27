"""`agentfs status`: what a mount says of itself."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from agentfs.cli.mountinfo import Mounted
    from agentfs.workspace.status import EdgeCacheStatus, ReplicaStatus, WorkspaceStatus


@click.command()
@click.argument("directory", required=False, metavar="[DIRECTORY|WORKSPACE]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per mount.")
def command(directory: str | None, as_json: bool) -> int:
    """Show position, unsaved work, leases, sessions, replicas and cache of the mount that DIRECTORY lies in.

    A workspace's name or its journal's URL means all of its mounts here. Without either: the mount of the working directory, or
    else every mount.
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

    quorum = f" of {status.write_quorum}" if status.write_quorum else ""
    dirty = f"{bytes_text(status.dirty_bytes)} in {status.dirty_files} files"
    reachable = "" if status.reachable else ", too few replicas can be reached"
    facts = [
        ("workspace", f"{status.name} ({status.workspace})"),
        ("settings", f"durability {status.durability}, replication {status.replication}{quorum}"),
        ("position", str(status.position)),
        (
            "holds",
            f"{status.files} files, {bytes_text(status.stored_bytes)}, of these {bytes_text(status.inline_bytes)} inline",
        ),
        ("unsaved", f"{status.pending_transactions} transactions, {dirty}{reachable}"),
        ("oldest unsaved", seconds_text(status.oldest_unsaved_seconds) if status.oldest_unsaved_seconds else "-"),
        ("memory cache", f"{bytes_text(status.cache.memory_bytes)} of {bytes_text(status.cache.memory_max_bytes)}"),
    ]
    if status.cache.edge is not None:
        facts.append(("disk cache", _edge_text(status.cache.edge)))
    facts += [
        ("staging", bytes_text(status.cache.staging_bytes)),
        ("leases", f"{status.leases}, lost after {seconds_text(status.lease_ttl_seconds)} of silence"),
    ]
    for session in status.sessions:
        who = f"{session.host}:{session.pid}" + (f" ({session.label})" if session.label else "")
        this = ", this mount" if session.this else ""
        ttl = f", TTL {seconds_text(session.ttl_seconds)}" if session.ttl_seconds is not None else ""
        facts.append((f"session {session.session}", f"{who}, since {time_text(session.opened_ns)}{ttl}{this}"))
    for replica in status.replicas:
        facts += _replica_facts(replica)
    facts += [("recovered", folder) for folder in status.recovered]
    return facts


def _edge_text(edge: "EdgeCacheStatus") -> str:
    from agentfs.cli.amounts import bytes_text

    trouble = f", {edge.trouble}" if edge.trouble else ""
    found = f"{edge.hits} hits, {edge.misses} misses, {bytes_text(edge.fetched_bytes)} fetched"
    return f"{bytes_text(edge.used_bytes)} of {bytes_text(edge.max_bytes)}, {found}{trouble}"


def _replica_facts(replica: "ReplicaStatus") -> list[tuple[str, str]]:
    """A line for the replica, and more where there is something to say."""
    from agentfs.cli.amounts import bytes_text, count_text, seconds_text

    name, latency = f"replica {replica.replica}", replica.latency_seconds
    state = "not asked, the mount is offline" if replica.state == "unasked" else replica.state
    facts = [(name, f"{state}{f' ({latency * 1000:.1f} ms)' if latency is not None else ''}, {replica.url}")]
    if replica.missing_segments:
        lag = f", {seconds_text(replica.lag_seconds)} behind" if replica.lag_seconds is not None else ""
        facts.append(("", f"lacks {count_text(replica.missing_segments, 'segment')}, {bytes_text(replica.missing_bytes)}{lag}"))
    if replica.mirror_lag:
        lag = f", {seconds_text(replica.mirror_lag_seconds)} behind" if replica.mirror_lag_seconds is not None else ""
        facts.append(("", f"its mirror lacks {replica.mirror_lag} of the journal's entries{lag}"))
    if replica.state in ("down", "probing") or replica.last_error:
        since = f" for {seconds_text(replica.down_seconds)}" if replica.down_seconds is not None else ""
        facts.append(("", f"{'last error' if replica.state == 'up' else f'unreachable{since}'}: {replica.last_error or '-'}"))
    if replica.requests is not None:
        asked = replica.requests
        verbs = ((asked.put, "PUT"), (asked.get, "GET"), (asked.head, "HEAD"), (asked.list, "LIST"), (asked.delete, "DELETE"))
        counts = ", ".join(f"{count} {verb}" for count, verb in verbs if count) or "no requests"
        facts.append(("", f"{counts}; {bytes_text(asked.bytes_in)} read, {bytes_text(asked.bytes_out)} written"))
    return facts
