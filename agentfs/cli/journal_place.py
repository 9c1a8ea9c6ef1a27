"""What a journal's URL means: the engine and the place where it keeps a workspace's journal; made, opened, removed there."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, assert_never
from urllib.parse import quote, unquote

from agentfs.cli.layout import check_name
from agentfs.journal.contract import FIRST
from agentfs.model.errors import Exists, Invalid, NotFound
from agentfs.model.ids import Position

if TYPE_CHECKING:
    from agentfs.journal.contract import Journal
    from agentfs.runtime import Runtime

KINDS: Final = "postgresql://USER@HOST/DATABASE or s3://BUCKET/PREFIX?endpoint=URL"

Engine = Literal["sqlite", "postgresql", "s3"]

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ENGINES: Final[dict[str, Engine]] = {"postgresql": "postgresql", "postgres": "postgresql", "s3": "s3"}
_WORKSPACE: Final = "workspace="


@dataclass(frozen=True, slots=True)
class JournalPlace:
    """Where a journal is.

    `url`: what finds it again, without secrets; for a journal in a file its path. `text`: what people call it, the same for
    whoever names the same place. `workspace`: what its workspace is called there; for S3 a guess from the prefix.
    """

    engine: Engine
    url: str
    text: str
    workspace: str

    @property
    def is_shared(self) -> bool:
        """Whether hosts share it. Then the engine sees to it that the journal outlives any of them."""
        return self.engine != "sqlite"


def is_url(text: str) -> bool:
    """Whether a user who names a workspace like this means its journal's URL, of whatever kind."""
    return _SCHEME.match(text) is not None


def journal_place(url: str, *, workspace: str | None = None) -> JournalPlace:
    """The place that a URL names. `workspace` is what a database is to call it, unless the URL says.

    Raises Invalid for a URL that will not do: its message repeats nothing of it that could be a secret.
    """
    found = _SCHEME.match(url)
    engine = _ENGINES.get(found[1].lower()) if found else None
    match engine:
        case "postgresql":
            return _in_postgres(url, workspace)
        case "s3":
            return _in_s3(url)
        case _:
            what = f"a {found[1]}: URL" if found else "what is no URL"
            raise Invalid(f"a journal cannot be at {what}: name {KINDS}")


def file_place(path: Path) -> JournalPlace:
    """The place of an embedded journal."""
    return JournalPlace("sqlite", str(path), str(path), path.parent.name)


async def create_journal(place: JournalPlace, runtime: "Runtime", *, first: Position = FIRST) -> None:
    """Make an empty journal, whose first entry will be at `first`.

    Raises Exists, NotFound for what it should be made in, Invalid, Denied, NoSpace, Unavailable.
    """
    match place.engine:
        case "sqlite":
            from agentfs.journal.sqlite import create_sqlite_journal

            await runtime.in_thread(lambda: create_sqlite_journal(Path(place.url), first=first))
        case "postgresql":
            from agentfs.journal.postgres import create_postgres_journal

            await create_postgres_journal(_server(place), workspace=place.workspace, runtime=runtime, first=first)
        case "s3":
            from agentfs.journal.s3 import create_s3_journal

            await create_s3_journal(place.url, runtime=runtime, first=first)
        case _ as never:
            assert_never(never)


async def remove_journal(place: JournalPlace, runtime: "Runtime") -> None:
    """Take a journal away that was made in vain. Raises Denied, Unavailable."""
    match place.engine:
        case "sqlite":
            for part in ("", "-wal", "-shm", "-turn"):
                Path(f"{place.url}{part}").unlink(missing_ok=True)
        case "postgresql":
            from agentfs.journal.postgres import remove_postgres_journal

            await remove_postgres_journal(_server(place), workspace=place.workspace, runtime=runtime)
        case "s3":
            from agentfs.journal.s3 import remove_s3_journal

            await remove_s3_journal(place.url, runtime=runtime)
        case _ as never:
            assert_never(never)


@asynccontextmanager
async def open_journal(place: JournalPlace, runtime: "Runtime") -> "AsyncIterator[Journal]":
    """The journal in a place, closed on leaving. Raises NotFound, Invalid, Denied, Corrupt, Unavailable."""
    match place.engine:
        case "sqlite":
            from agentfs.journal.sqlite import open_sqlite_journal

            async with open_sqlite_journal(Path(place.url), runtime=runtime) as journal:
                yield journal
        case "postgresql":
            from agentfs.journal.postgres import open_postgres_journal

            async with open_postgres_journal(_server(place), workspace=place.workspace, runtime=runtime) as in_database:
                yield in_database
        case "s3":
            from agentfs.journal.s3 import open_s3_journal

            async with open_s3_journal(place.url, runtime=runtime) as in_bucket:
                yield in_bucket
        case _ as never:
            assert_never(never)


class Journals:
    """The journals of new workspaces."""

    def __init__(self, runtime: "Runtime") -> None:
        self._runtime = runtime

    async def check_free(self, place: JournalPlace) -> None:
        """Raise Exists if there is a journal in a place that hosts share, and what opening one raises."""
        try:
            async with open_journal(place, self._runtime) as journal:
                holds_something = bool(await journal.tail())
        except NotFound:
            return
        if holds_something:
            raise Exists(f"there is a workspace in {place.text} already: `agentfs mount '{place.url}' DIR` mounts it")
        raise Exists(f"there is a journal without a workspace in {place.text}: what made it broke off; name another place")

    async def create(self, place: JournalPlace) -> None:
        """Make an empty journal."""
        await create_journal(place, self._runtime)

    async def begin(self, place: JournalPlace, payload: bytes) -> None:
        """Append its first entry."""
        async with open_journal(place, self._runtime) as journal:
            await journal.append(payload)

    async def remove(self, place: JournalPlace) -> None:
        """Take away the journal that was made."""
        await remove_journal(place, self._runtime)


# ---- PostgreSQL: libpq's URL, and in its query the workspace, of which libpq knows nothing


def _in_postgres(url: str, workspace: str | None) -> JournalPlace:
    from agentfs.journal.postgres_place import place_of

    server, named = _split(url)
    text = place_of(server).text
    name = named or workspace
    if name is None:
        raise Invalid(f"the journal's URL does not say which workspace in {text} is meant: add ?{_WORKSPACE}NAME")
    check_name(name)
    joined = f"{server}{'&' if '?' in server else '?'}{_WORKSPACE}{quote(name)}"
    return JournalPlace("postgresql", joined, f"{text}?{_WORKSPACE}{name}", name)


def _server(place: JournalPlace) -> str:
    return _split(place.url)[0]


def _split(url: str) -> tuple[str, str | None]:
    """The URL without the workspace, and the workspace if it names one."""
    head, _, query = url.partition("?")
    words = [word for word in query.split("&") if word]
    names = [unquote(word.removeprefix(_WORKSPACE)) for word in words if word.startswith(_WORKSPACE)]
    if len(names) > 1:
        raise Invalid("the journal's URL names more than one workspace")
    rest = "&".join(word for word in words if not word.startswith(_WORKSPACE))
    return f"{head}?{rest}" if rest else head, names[0] if names else None


# ---- S3


def _in_s3(url: str) -> JournalPlace:
    from agentfs.s3 import parse_s3_url

    place = parse_s3_url(url)
    where = f"s3://{place.bucket}/{place.prefix}".rstrip("/")
    text = f"{where} at {place.endpoint}" if place.endpoint else where
    return JournalPlace("s3", place.url, text, where.rpartition("/")[2])
