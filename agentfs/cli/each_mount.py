"""Which mounts a command is about that takes an optional directory, and how it goes on where one of several does not answer."""

from collections.abc import Callable
from pathlib import Path

import click

from agentfs.cli.failures import exit_code_of, line_of
from agentfs.cli.mount_queries import mount_of
from agentfs.cli.mountinfo import Mounted, canonical, mount_holding, our_mounts
from agentfs.model.errors import AgentfsError, Denied


def each_mount(directory: Path | None, show: Callable[[Mounted], None], *, blank_between: bool) -> int:
    """Show the mount that `directory` lies in; without one, that of the working directory, or else every mount.

    Of every mount, those are shown that answer; the exit code tells of the first of this user's that does not.
    """
    if directory is not None:
        show(mount_of(canonical(directory)))
        return 0
    code = 0
    for index, mounted in enumerate(_chosen()):
        if index and blank_between:
            click.echo()
        try:
            show(mounted)
        except AgentfsError as error:
            click.echo(f"agentfs: {line_of(error)}", err=True)
            code = code or (0 if isinstance(error, Denied) else exit_code_of(error))
    return code


def _chosen() -> list[Mounted]:
    here = mount_holding(canonical(Path()))
    if here is not None and here.ours:
        return [here]
    mounts = our_mounts()
    if not mounts:
        click.echo("nothing is mounted: agentfs mount WORKSPACE DIRECTORY", err=True)
    return mounts
