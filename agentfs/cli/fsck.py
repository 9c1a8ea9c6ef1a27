"""`agentfs fsck`: checks a workspace's journal, State and chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agentfs.cli.arguments import PATH

if TYPE_CHECKING:
    from agentfs.cli.layout import WorkspaceDirectory
    from agentfs.cli.workspace_file import WorkspaceFile


@click.command()
@click.argument("workspace")
@click.option("--root", type=PATH, help="Where workspaces are kept. Default: AGENTFS_ROOT, else XDG data.")
@click.option("--json", "as_json", is_flag=True, help="Print records of the progress, the faults and the result.")
def command(workspace: str, root: Path | None, as_json: bool) -> int:
    """Check WORKSPACE, a name or a path.

    The journal has no gap, a fresh replay gives the same State, and every extent's chunk is in the replicas it should be in,
    with the right hash. Exit code 7 if something is wrong.
    """
    from agentfs.cli.failures import DAMAGED
    from agentfs.cli.layout import data_root, workspace_directory
    from agentfs.cli.progress import echo_json, progress
    from agentfs.cli.workspace_file import read_workspace_file

    place = data_root(root)
    directory = workspace_directory(workspace, place)
    file = read_workspace_file(directory, root=place)
    with progress("checking", unit="items", as_json=as_json) as shown:
        faults = _check(directory, file, shown.advance)
    if as_json:
        for fault in faults:
            echo_json({"event": "fault", "message": fault})
        echo_json({"event": "checked", "workspace": file.name, "faults": len(faults)})
    else:
        for fault in faults:
            click.echo(f"✗ {fault}")
        click.echo(f"workspace {file.name}: {f'{len(faults)} faults' if faults else 'no fault found'}")
    return DAMAGED if faults else 0


def _check(directory: "WorkspaceDirectory", file: "WorkspaceFile", report: Callable[[int, int, str], None]) -> list[str]:
    """Every fault, as one line each: the one place that knows how the checker is called."""
    import trio

    from agentfs.chunks.directory import DirectoryStore
    from agentfs.journal.sqlite import open_sqlite_journal
    from agentfs.runtime import SystemRuntime
    from agentfs.workspace.fsck import check_workspace

    async def check() -> list[str]:
        runtime = SystemRuntime()
        stores = {place.replica: DirectoryStore(place.directory(directory.path), runtime=runtime) for place in file.replicas}
        async with open_sqlite_journal(directory.path / file.journal, runtime=runtime) as journal:
            faults: list[str] = await check_workspace(journal=journal, replicas=stores, report=report, runtime=runtime)
            return faults

    return trio.run(check)
