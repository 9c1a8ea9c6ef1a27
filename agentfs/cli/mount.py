"""`agentfs mount`: mounts a workspace, or lists what is mounted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from agentfs.cli.arguments import PATH, SIZE
from agentfs.cli.defaults import CONFIG_OPTION

_OPTIONS_HELP = (
    "Mount options: ro, rw, allow_other, uid=N, gid=N, umask=OCTAL, durability=close|fsync, lease_ttl=SECONDS,"
    " staleness=SECONDS, strict (the kernel caches no names: a lookup always sees what other mounts did),"
    " noreplay (programs here that watch files are not told what other mounts did), timeout=SECONDS,"
    " unreachable=eio|erofs (what writes fail with when too few replicas can be reached; with erofs later ones fail at once),"
    " offline (read-only; no replica is contacted, what is not cached here cannot be read),"
    " nohedge (a slow read is not asked of a second replica), label=TEXT, cache_size=SIZE, cache_dir=DIR, root=DIR,"
    " and what mount(8) and fstab pass (noexec, nosuid, noauto, _netdev, x-…)."
)


@click.command()
@click.argument("workspace", required=False)
@click.argument("directory", required=False, type=PATH)
@click.option("-f", "--foreground", is_flag=True, help="Serve the mount from here instead of from a daemon.")
@click.option("-o", "--options", "option_lists", multiple=True, metavar="OPTIONS", help=_OPTIONS_HELP)
@click.option(
    "--journal",
    metavar="URL",
    help="Instead of WORKSPACE: where its journal is, postgresql://USER@HOST/DATABASE?workspace=NAME or s3://BUCKET/PREFIX?….",
)
@click.option("--durability", type=click.Choice(["close", "fsync"]), help="What waits until its bytes are safe.")
@click.option(
    "--lease-ttl",
    "lease_ttl_seconds",
    type=float,
    metavar="SECONDS",
    help="When this mount was silent for so long, others may take its locks: 1 to 3600. Default: 10.",
)
@click.option(
    "--staleness",
    "staleness_seconds",
    type=float,
    metavar="SECONDS",
    help="How old may be what open() sees of other mounts, 0 to 60, to ask the journal less often. Default: 0.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=float,
    metavar="SECONDS",
    help="How long a write waits for enough replicas before it fails; what was written goes out later. Default: 30.",
)
@click.option("--label", help="What `agentfs log` and user.agentfs.writer call this mount. Default: HOST:PID.")
@click.option(
    "--cache-size",
    "cache_size_bytes",
    type=SIZE,
    metavar="SIZE",
    help="The disk cache's bound, such as 10G. Default: 10G or 80% of what is free.",
)
@click.option("--cache-dir", type=PATH, help="Default: AGENTFS_CACHE_DIR, else XDG cache.")
@click.option("--root", type=PATH, help="Where workspaces are kept. Default: AGENTFS_ROOT, else XDG data.")
@click.option("--log-file", metavar="FILE", help="The log, - for stderr. Default: in the XDG state directory.")
@click.option("--ready-fd", type=int, hidden=True)
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, or one per mount.")
@click.pass_context
def command(
    context: click.Context,
    /,
    workspace: str | None,
    directory: Path | None,
    foreground: bool,
    option_lists: tuple[str, ...],
    journal: str | None,
    log_file: str | None,
    ready_fd: int | None,
    as_json: bool,
    **overrides: Any,
) -> int:
    """Mount WORKSPACE, a name, a path or its journal's URL, on the empty directory DIRECTORY.

    Returns when the mount answers. Without arguments, lists what is mounted. With --journal, or where AGENTFS_JOURNAL or the
    file of --config names one, DIRECTORY is the only argument.
    """
    if workspace is None:
        return _list(as_json=as_json)
    if directory is None and journal is not None:
        workspace, directory = journal, Path(workspace)
    elif directory is None:
        raise click.UsageError("name the directory to mount on: agentfs mount WORKSPACE DIRECTORY")
    elif context.get_parameter_source("journal") is ParameterSource.COMMANDLINE:
        raise click.UsageError("name WORKSPACE or its --journal, not both")

    from agentfs.cli.mount_options import MountOptions, parse_options
    from agentfs.cli.mount_plan import plan_mount

    given = {name: value for name, value in overrides.items() if value is not None}
    said = {name: value for name, value in given.items() if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    # What -o says is more than what a file or the environment says, and less than an option of the same name.
    options = replace(parse_options(option_lists, MountOptions(**given)), **said)
    plan = plan_mount(workspace, directory, options, log_file=log_file)
    return _mount(plan, foreground=foreground, ready_fd=ready_fd, as_json=as_json)


def _mount(plan: Any, *, foreground: bool, ready_fd: int | None, as_json: bool) -> int:
    import os

    from agentfs.cli.daemon import ReadyPipe, Started, start_daemon
    from agentfs.cli.layout import log_path, runtime_directory
    from agentfs.cli.preflight import check_machine, check_mountpoint

    check_machine(allow_other=plan.options.allow_other)
    runtime_directory()
    if check_mountpoint(plan.mountpoint):
        click.echo("agentfs: the daemon of an earlier mount here was gone: cleared it away", err=True)
    if foreground:
        from agentfs.cli.serve import run_daemon

        quiet = ready_fd is not None
        return run_daemon(
            plan,
            ReadyPipe(ready_fd),
            announce=lambda name: None if quiet else _announce(plan, name, os.getpid(), as_json=as_json),
        )
    plan = plan if plan.log else replace(plan, log=log_path(plan.source.name, plan.mountpoint))
    outcome = start_daemon(plan, plan.log)
    if isinstance(outcome, Started):
        _announce(plan, outcome.workspace, outcome.pid, as_json=as_json)
        return 0
    click.echo(f"agentfs: {outcome.line}", err=True)
    return outcome.exit_code


def _announce(plan: Any, name: str, pid: int, *, as_json: bool) -> None:
    from agentfs.cli.amounts import path_text
    from agentfs.cli.progress import echo_json

    mountpoint = path_text(plan.mountpoint)
    log = path_text(plan.log) if plan.log else None
    if as_json:
        echo_json({"workspace": name, "mountpoint": mountpoint, "pid": pid, "log": log})
        return
    click.echo(f"workspace {name} mounted on {mountpoint}{' (read-only)' if plan.options.read_only else ''}")
    click.echo(f"  log: {log or 'stderr'}")
    click.echo(f"  unmount: agentfs umount {mountpoint}")


def _list(*, as_json: bool) -> int:
    from agentfs.cli.amounts import columns
    from agentfs.cli.mount_list import list_mounts
    from agentfs.cli.progress import echo_json

    mounts = list_mounts()
    if as_json:
        for mount in mounts:
            echo_json(mount)
        return 0
    if not mounts:
        click.echo("nothing is mounted: agentfs mount WORKSPACE DIRECTORY")
        return 0
    for line in columns([("WORKSPACE", "MOUNTPOINT", "STATE", "PID", "SINCE", "LOG"), *(mount.row() for mount in mounts)]):
        click.echo(line)
    return 0
