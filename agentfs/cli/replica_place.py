"""What a replica's URL means: the directory or the place in a bucket that it names, opened as a chunk store."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from agentfs.chunks.contract import ChunkStore
from agentfs.model.errors import Invalid
from agentfs.runtime import Runtime

if TYPE_CHECKING:
    from agentfs.chunks.s3 import Requests
    from agentfs.s3 import S3Place

KINDS: Final = "a directory's path, file:///PATH or s3://BUCKET/PREFIX"

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|file:")


def replica_url(text: str) -> str:
    """The URL of what a user called a replica: a directory's path, or a URL already.

    Raises Invalid for a URL of another kind, and for one with credentials in it, which are not shown again.
    """
    if not _URL.match(text):
        return Path(os.path.realpath(text)).as_uri()
    scheme = urlsplit(text).scheme
    if scheme == "s3":
        return _s3_place(text).url
    if scheme != "file":
        raise Invalid(f"a replica cannot be at a {scheme}: URL: name {KINDS}")
    directory_of(text, Path("/"))
    return text


def directory_of(url: str, base: Path) -> Path | None:
    """The directory that a URL names, None if it names something else; `base`, the workspace's directory, is where relative
    ones begin. Raises Invalid for a file: URL with a host.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    if parts.netloc or not parts.path:
        raise Invalid(f"{url} names no directory: write file:///PATH")
    return base / unquote(parts.path)


def place_text(url: str, base: Path) -> str:
    """What people call the place: a directory's path, or the URL."""
    directory = directory_of(url, base)
    return url if directory is None else os.fsencode(directory).decode(errors="backslashreplace")


class Place(NamedTuple):
    """A replica's place, opened. `requests` says what was asked of it so far, where that is counted."""

    store: ChunkStore
    name: str
    directory: Path | None
    requests: "Callable[[], Requests] | None" = None


def open_place(url: str, base: Path, runtime: Runtime) -> Place:
    """The place that a URL names; nothing is asked of it yet. Raises Invalid for a URL of an unknown kind."""
    directory = directory_of(url, base)
    name = place_text(url, base)
    if directory is not None:
        from agentfs.chunks.directory import DirectoryStore

        return Place(DirectoryStore(directory, runtime=runtime), name, directory)
    place = _s3_place(url)

    from agentfs.chunks.retrying import Retrying
    from agentfs.chunks.s3 import S3Store

    store = S3Store(place, runtime=runtime)
    return Place(Retrying(store, runtime=runtime), name, None, lambda: store.requests)


def check_apart(urls: Sequence[str], base: Path) -> None:
    """Raise Invalid for replicas inside one another: they would not fail apart, and would hold each other's objects."""
    for index, one in enumerate(urls):
        for other in urls[:index]:
            if _overlap(one, other, base):
                raise Invalid(
                    f"replicas {place_text(other, base)} and {place_text(one, base)} overlap: each needs a place of its own"
                )


def _overlap(one: str, other: str, base: Path) -> bool:
    first, second = directory_of(one, base), directory_of(other, base)
    if first is None and second is None:
        return _overlap_in_bucket(_s3_place(one), _s3_place(other))
    if first is None or second is None:
        return False
    first, second = Path(os.path.realpath(first)), Path(os.path.realpath(second))
    return first.is_relative_to(second) or second.is_relative_to(first)


def _overlap_in_bucket(one: "S3Place", other: "S3Place") -> bool:
    if (one.endpoint, one.bucket) != (other.endpoint, other.bucket):
        return False
    first, second = (f"{place.prefix.strip('/')}/".lstrip("/") for place in (one, other))
    return first.startswith(second) or second.startswith(first)


def _s3_place(url: str) -> "S3Place":
    from agentfs.s3 import parse_s3_url

    if urlsplit(url).scheme != "s3":
        raise Invalid(f"this version cannot open a replica at a {urlsplit(url).scheme or 'relative'}: URL: it knows {KINDS}")
    return parse_s3_url(url)
