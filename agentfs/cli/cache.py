"""`agentfs cache`: what the edge cache of this host holds; emptying it, and checking every file in it."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from agentfs.cli.arguments import PATH

if TYPE_CHECKING:
    from agentfs.chunks.edge_files import EdgeFiles, KeptFile

_DEFAULT: Final = "status"

_CACHE_DIR_OPTION: Final = click.option("--cache-dir", type=PATH, help="Default: AGENTFS_CACHE_DIR, else XDG cache.")


class _StatusByDefault(click.Group):
    """A group that takes options alone as those of `status`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the command in front where the user left it out."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_StatusByDefault)
def command() -> None:
    """Show, empty or check the chunks that mounts of this host keep on its disk.

    All mounts that use the same cache directory share them, also those of different workspaces. Nothing is lost with them: what
    is not there is fetched again. The commands may be used while workspaces are mounted.
    """


@command.command(_DEFAULT)
@_CACHE_DIR_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(cache_dir: Path | None, as_json: bool) -> int:
    """Show how much is kept, and when it was used.

    The bound is that of the mount that looked last; "unknown" if none has yet.
    """
    from agentfs.chunks.edge_bound import cost, recorded_bound
    from agentfs.cli.amounts import bytes_text, path_text, time_text
    from agentfs.cli.progress import echo_json

    files = _files(cache_dir)
    kept = _scan(files)
    used = sum(cost(file.size_bytes) for file in kept)
    bound = recorded_bound(files.directory)
    oldest, newest = (min(kept).used_ns, max(kept).used_ns) if kept else (None, None)
    if as_json:
        facts = {"files": len(kept), "used_bytes": used, "max_bytes": bound}
        times = {"least_recently_used_ns": oldest, "most_recently_used_ns": newest}
        echo_json({"directory": path_text(files.directory), **facts, **times})
        return 0
    click.echo(f"cache {path_text(files.directory)}")
    click.echo(f"  used   {bytes_text(used)} of {'unknown' if bound is None else bytes_text(bound)}, in {len(kept)} files")
    if oldest is not None and newest is not None:
        click.echo(f"  use    {time_text(oldest)} to {time_text(newest)}")
    return 0


@command.command()
@_CACHE_DIR_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def clear(cache_dir: Path | None, as_json: bool) -> int:
    """Remove every kept chunk. Mounts go on, and fetch what they need."""
    from agentfs.chunks.edge_bound import cost
    from agentfs.cli.amounts import bytes_text, path_text
    from agentfs.cli.failures import FORBIDDEN
    from agentfs.cli.progress import echo_json

    files = _files(cache_dir)
    kept = _scan(files)
    removed = [file for file in kept if files.remove(file)]
    files.prune()
    freed = sum(cost(file.size_bytes) for file in removed)
    left = len(kept) - len(removed)
    if as_json:
        facts = {"files": len(removed), "freed_bytes": freed, "left": left}
        echo_json({"event": "cleared", "directory": path_text(files.directory), **facts})
    else:
        click.echo(f"freed {bytes_text(freed)} in {len(removed)} files")
        if left:
            click.echo(f"agentfs: {left} files could not be removed", err=True)
    return FORBIDDEN if left else 0


@command.command()
@_CACHE_DIR_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print records of the progress, what is wrong, and the result.")
def verify(cache_dir: Path | None, as_json: bool) -> int:
    """Read every kept chunk and remove what is not what its name says. Exit code 7 if there was such a file.

    A mount does the same with each file that it reads; this finds the others, and tells of a disk that goes bad.
    """
    from agentfs.cli.amounts import path_text
    from agentfs.cli.failures import DAMAGED
    from agentfs.cli.progress import echo_json, progress

    files = _files(cache_dir)
    kept = [file for file in _scan(files) if file.piece is not None]
    total = sum(file.size_bytes for file in kept)
    done, wrong = 0, list[str]()
    with progress("verify", unit="bytes", as_json=as_json) as shown:
        for file in kept:
            if _is_wrong(files, file):
                wrong.append(path_text(Path(file.path)))
            done += file.size_bytes
            shown.advance(done, total)
    if as_json:
        for path in wrong:
            echo_json({"event": "wrong", "path": path})
        echo_json({"event": "verified", "files": len(kept), "bytes": total, "wrong": len(wrong)})
    else:
        for path in wrong:
            click.echo(f"✗ {path}: its bytes are wrong, it is removed")
        click.echo(_verdict(len(kept), total, len(wrong)))
    return DAMAGED if wrong else 0


def _verdict(files: int, size_bytes: int, wrong: int) -> str:
    from agentfs.cli.amounts import bytes_text

    return f"{files} files read ({bytes_text(size_bytes)}): {f'{wrong} wrong' if wrong else 'all are right'}"


def _is_wrong(files: "EdgeFiles", file: "KeptFile") -> bool:
    """Whether the file is there with wrong bytes, or cannot be read; it is removed then."""
    assert file.piece is not None, "only what this version wrote is looked at"
    right: bool | None = False
    with suppress(OSError):
        right = files.sound(file.path, file.piece)
    if right is False:
        files.remove(file)
    return right is False


def _scan(files: "EdgeFiles") -> "list[KeptFile]":
    """Every file of the cache that is not just being written."""
    import itertools

    from agentfs.chunks.edge_bound import is_being_written
    from agentfs.runtime import SystemRuntime

    now_ns = SystemRuntime().now_ns()
    return [file for file in itertools.chain.from_iterable(files.scan()) if not is_being_written(file, now_ns)]


def _files(cache_dir: Path | None) -> "EdgeFiles":
    from agentfs.chunks.edge_files import EDGE_DIRECTORY, EdgeFiles
    from agentfs.cli.layout import cache_root

    return EdgeFiles(cache_root(cache_dir) / EDGE_DIRECTORY)
