"""`agentfs warm`: fetches files into the caches, so that they can be read without a replica later."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agentfs.cli.arguments import PATH

if TYPE_CHECKING:
    from agentfs.cli.control import WarmStep
    from agentfs.cli.progress import Progress


@click.command()
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@click.option("--json", "as_json", is_flag=True, help="Print records of the progress and of the result.")
def command(paths: tuple[Path, ...], as_json: bool) -> int:
    """Fetch the files at and below each PATH of a mounted workspace, so that they are read from here.

    What is here already costs nothing. It stays as long as the cache has room: see `agentfs cache status`. Ctrl-C ends it, and
    what was fetched stays. Exit code 6 if something could not be fetched; it is named.
    """
    from agentfs.cli.failures import UNAVAILABLE

    return UNAVAILABLE if sum(_warm(path, as_json=as_json) for path in paths) else 0


def _warm(path: Path, *, as_json: bool) -> int:
    """Warm one path; how many files could not be fetched."""
    from agentfs.cli.amounts import path_text
    from agentfs.cli.control import WarmStep
    from agentfs.cli.mount_queries import mount_of, warm
    from agentfs.cli.mountinfo import canonical
    from agentfs.cli.progress import echo_json, progress

    whole = canonical(path)
    mounted = mount_of(whole)
    last = WarmStep(bytes_done=0, bytes_total=0, files_done=0, files_total=0, failed=0)
    failed: list[str] = []
    with progress("warming", unit="bytes", as_json=as_json) as shown:
        for reply in warm(mounted, whole):
            if isinstance(reply, WarmStep):
                last = reply
                _show(shown, reply)
            else:
                failed = reply.failed
    if as_json:
        facts = {"bytes": last.bytes_done, "files": last.files_done, "unfetched": last.failed, "failed": failed}
        echo_json({"event": "warmed", "path": path_text(whole), **facts})
    else:
        _echo_result(path_text(whole), last, failed)
    return len(failed)


def _show(shown: "Progress", step: "WarmStep") -> None:
    shown.advance(step.bytes_done, step.bytes_total, f"({step.files_done} of {step.files_total} files)")


def _echo_result(path: str, last: "WarmStep", failed: list[str]) -> None:
    from agentfs.cli.amounts import bytes_text

    files = f"{last.files_done} of {last.files_total} files" if last.failed else f"{last.files_total} files"
    click.echo(f"{path}: {files} are here; fetched {bytes_text(last.bytes_done)}")
    for line in failed:
        click.echo(f"agentfs: not fetched: {line}", err=True)
