"""Which mounts a command is about that takes an optional directory, and how it goes on where one of several does not answer."""

from collections.abc import Callable
from pathlib import Path

import click

from agentfs.cli.failures import exit_code_of, line_of
from agentfs.cli.layout import data_root
from agentfs.cli.mount_queries import mount_of
from agentfs.cli.mountinfo import Mounted, canonical, mount_holding, our_mounts
from agentfs.cli.workspace_source import mounts_named
from agentfs.model.errors import AgentfsError, Denied, NotFound


def each_mount(text: str | None, show: Callable[[Mounted], None], *, blank_between: bool) -> int:
    """Show the mount that a directory lies in, or those of a workspace that is named, or that its journal's URL means.

    Without `text`: the mount of the working directory, or else every mount. Of several those are shown that answer; the exit
    code tells of the first of this user's that does not. Raises NotFound if `text` is nothing that is mounted.
    """
    named = None if text is None else mounts_named(text, data_root(None))
    if text is not None and named is None:
        show(mount_of(canonical(Path(text))))
        return 0
    if named == []:
        raise NotFound(f"{text} is not mounted here: `agentfs mount` lists what is mounted")
    code = 0
    for index, mounted in enumerate(named or _chosen()):
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
