"""`agentfs fsck`: checks a workspace's journal, State and chunks."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from agentfs.cli.arguments import PATH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agentfs.chunks.contract import ChunkStore
    from agentfs.cli.replica_place import Place
    from agentfs.cli.stack import OpenedSource
    from agentfs.cli.workspace_source import Source
    from agentfs.model.ids import ReplicaId
    from agentfs.model.replica import Replica
    from agentfs.workspace.fsck import Checked
    from agentfs.workspace.fsck_chunks import Report


@click.command()
@click.argument("workspace")
@click.option("--cache-dir", type=PATH, help="Where mounts keep State. Default: AGENTFS_CACHE_DIR, else XDG cache.")
@click.option("--root", type=PATH, help="Where workspaces are kept. Default: AGENTFS_ROOT, else XDG data.")
@click.option("--json", "as_json", is_flag=True, help="Print records of the progress, the findings and the result.")
def command(workspace: str, cache_dir: Path | None, root: Path | None, as_json: bool) -> int:
    """Check WORKSPACE, a name, a path, its journal's URL or a directory in a mount of it. It may be mounted meanwhile.

    The journal has no gap, a fresh replay gives the same State as mounts have, and every chunk that a file needs is in the
    replicas it should be in, with the right hash. Exit code 7 if something is wrong.
    """
    from agentfs.cli.failures import DAMAGED
    from agentfs.cli.layout import cache_root
    from agentfs.cli.workspace_source import find_source

    name, checked = _check(find_source(workspace, root), cache_root(cache_dir), as_json=as_json)
    if as_json:
        _show_json(name, checked)
    else:
        _show(name, checked)
    return DAMAGED if checked.faults else 0


def _show_json(name: str, checked: "Checked") -> None:
    from agentfs.cli.progress import echo_json

    for each in checked.findings:
        echo_json({"event": each.severity, "kind": each.kind, "message": each.message})
    notes = len(checked.findings) - len(checked.faults)
    looked = {"entries": checked.entries, "states": checked.states}
    echo_json({"event": "checked", "workspace": name, "faults": len(checked.faults), "notes": notes, **looked})


def _show(name: str, checked: "Checked") -> None:
    for each in checked.findings:
        click.echo(f"{'✗' if each.severity == 'fault' else 'note:'} {each.message}")
    count = len(checked.faults)
    result = f"{count} fault{'s' if count > 1 else ''}" if count else "no fault found"
    click.echo(f"workspace {name}: {result} ({checked.entries} entries, {checked.states} State files compared)")


def _check(source: "Source", cache_dir: Path, *, as_json: bool) -> "tuple[str, Checked]":
    """The workspace's name and every finding: the one place that puts together what the checker looks at."""
    from dataclasses import replace
    from functools import partial

    import trio

    from agentfs.cli.progress import progress
    from agentfs.cli.replica_place import open_place
    from agentfs.cli.stack import open_replica, open_source
    from agentfs.runtime import SystemRuntime
    from agentfs.workspace.fetching import fetch_chosen
    from agentfs.workspace.findings import Finding
    from agentfs.workspace.fsck import check_workspace

    @contextmanager
    def stage(title: str, unit: Literal["bytes", "items"]) -> "Iterator[Report]":
        with progress(title, unit=unit, as_json=as_json) as shown:
            yield shown.advance

    async def check() -> "tuple[str, Checked]":
        runtime = SystemRuntime()
        findings: list[Finding] = []

        async with open_source(source, runtime=runtime) as opened:

            async def open_stores(members: "Mapping[ReplicaId, Replica]") -> "dict[ReplicaId, ChunkStore]":
                """Those that are this workspace's; what is wrong with the others is among the findings."""
                stores = {}
                for number, replica in members.items():
                    place = open_place(opened.file.url_of(number, replica.url), source.base, runtime)
                    stranger, complaint = await _look_at_marker(place, replica, opened)
                    if complaint:
                        findings.append(Finding("replica", f"replica {number} at {replica.url}: {complaint}"))
                    if stranger:
                        await place.store.aclose()
                    else:
                        stores[number] = place.store
                return stores

            checked = await check_workspace(
                workspace=opened.file.workspace,
                journal=opened.journal,
                open_stores=open_stores,
                fetch=partial(fetch_chosen, open_store=partial(open_replica, opened, runtime=runtime), runtime=runtime),
                cache_dir=cache_dir,
                runtime=runtime,
                stage=stage,
            )
        return opened.file.name, replace(checked, findings=[*findings, *checked.findings])

    return trio.run(check)


async def _look_at_marker(place: "Place", replica: "Replica", opened: "OpenedSource") -> tuple[bool, str]:
    """Whether the place is another workspace's or replica's, and what is wrong with its marker; "" if nothing."""
    from agentfs.cli.replica_marker import MARKER_KEY, read_marker
    from agentfs.model.errors import AgentfsError, Unavailable

    try:
        marker = await read_marker(place)
    except Unavailable:
        return False, ""  # Listing what it holds says so.
    except AgentfsError as error:
        return False, str(error)
    if marker is None:
        return False, f"it has no {MARKER_KEY}: is its disk mounted?"
    if (marker.workspace, marker.replica) != (opened.file.workspace, replica.replica):
        return True, f"it is {marker.owner}"
    return False, ""
