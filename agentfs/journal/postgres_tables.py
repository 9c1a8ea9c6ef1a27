"""What a PostgreSQL database holds for its journals, how it comes to its present form, and the contract's operations as SQL."""

from typing import Final, NamedTuple

from agentfs.journal.postgres_connection import Connection, Statement
from agentfs.model.errors import Exists, Invalid, NotFound, NotSupported
from agentfs.model.ids import Position

MIGRATIONS: tuple[tuple[bytes, ...], ...] = (
    (
        # The journals of all workspaces in this database. Whoever appends locks the row: `tail` is the last entry's position.
        b"""CREATE TABLE agentfs_journals (
            journal bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            workspace text NOT NULL UNIQUE,
            tail bigint NOT NULL DEFAULT 0)""",
        # A journal's entries: contiguous up to `tail`, from 1 or from where they were trimmed.
        b"""CREATE TABLE agentfs_entries (
            journal bigint NOT NULL,
            position bigint NOT NULL,
            payload bytea NOT NULL,
            PRIMARY KEY (journal, position))""",
        # The heartbeats of its sessions.
        b"""CREATE TABLE agentfs_beats (
            journal bigint NOT NULL,
            session bigint NOT NULL,
            count bigint NOT NULL,
            PRIMARY KEY (journal, session))""",
    ),
    (
        # `first` is the position of the journal's first entry, or of the one that would be.
        b"ALTER TABLE agentfs_journals ADD COLUMN first bigint NOT NULL DEFAULT 1",
        # Its pointer, and the position that it is for: in a row of its own, for nobody who appends to wait or to copy.
        b"""CREATE TABLE agentfs_pointers (
            journal bigint NOT NULL PRIMARY KEY,
            position bigint NOT NULL,
            pointer bytea NOT NULL)""",
    ),
)
"""The steps from one version of the tables to the next; the first makes them. A step that was released is never changed."""

_LOCK: Final = 0x6167_656E_7466_73
"""The advisory lock under which tables are made and migrated ("agentfs")."""

PORTION_ENTRIES: Final = 2000
"""How many entries one statement looks at, so that reading a little of a long journal costs little."""

_TRIM_STEP: Final = 500

_SCHEMA: Final = b"CREATE TABLE IF NOT EXISTS agentfs_schema (version bigint NOT NULL)"
_SCHEMA_START: Final = b"INSERT INTO agentfs_schema SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM agentfs_schema)"
_SCHEMA_VERSION: Final = b"SELECT version FROM agentfs_schema"

_FIND: Final = b"SELECT journal, first FROM agentfs_journals WHERE workspace = $1"
_ENTER: Final = b"INSERT INTO agentfs_journals (workspace, tail, first) VALUES ($1, $2 - 1, $2)"

# The row's lock orders those who append; each sees the tail that the one before has committed.
_APPEND: Final = b"""
WITH placed AS (UPDATE agentfs_journals SET tail = tail + 1 WHERE journal = $1 RETURNING journal, tail)
INSERT INTO agentfs_entries (journal, position, payload) SELECT journal, tail, $2 FROM placed RETURNING position
"""

_RING: Final = b"""
SELECT pg_notify('agentfs_' || journal, tail::text) FROM agentfs_journals WHERE journal = $1
"""

# As many as fit, with the first in any case. The sizes come from the rows' heads: only what is returned is read in full.
_ENTRIES: Final = b"""
SELECT position, payload FROM (
    SELECT position, payload, row_number() OVER behind AS number, sum(length(payload)) OVER behind AS size
    FROM (
        SELECT position, payload FROM agentfs_entries WHERE journal = $1 AND position > $2 ORDER BY position LIMIT $4
    ) AS portion
    WINDOW behind AS (ORDER BY position)
) AS counted
WHERE number = 1 OR size <= $3 ORDER BY position
"""

_TAIL: Final = b"SELECT tail FROM agentfs_journals WHERE journal = $1"

_BEAT: Final = b"""
INSERT INTO agentfs_beats (journal, session, count) VALUES ($1, $2, 1)
ON CONFLICT (journal, session) DO UPDATE SET count = agentfs_beats.count + 1
"""
_BEATS: Final = b"SELECT session, count FROM agentfs_beats WHERE journal = $1"
_FORGET_BEAT: Final = b"DELETE FROM agentfs_beats WHERE journal = $1 AND session = $2"

_TRIM: Final = b"""
WITH forgotten AS (
    DELETE FROM agentfs_entries WHERE journal = $1 AND position < LEAST(
        $2,
        (SELECT tail FROM agentfs_journals WHERE journal = $1),
        (SELECT min(position) FROM agentfs_entries WHERE journal = $1) + $3)
    RETURNING position)
SELECT count(*) FROM forgotten
"""

_POINTER: Final = b"SELECT pointer FROM agentfs_pointers WHERE journal = $1"
_POINT: Final = b"""
INSERT INTO agentfs_pointers (journal, position, pointer)
SELECT journal, $2, $3 FROM agentfs_journals WHERE journal = $1
ON CONFLICT (journal) DO UPDATE SET position = EXCLUDED.position, pointer = EXCLUDED.pointer
WHERE agentfs_pointers.position <= EXCLUDED.position
"""

_REMOVE: Final = (
    b"DELETE FROM agentfs_entries WHERE journal = $1",
    b"DELETE FROM agentfs_beats WHERE journal = $1",
    b"DELETE FROM agentfs_pointers WHERE journal = $1",
    b"DELETE FROM agentfs_journals WHERE journal = $1",
)


async def make(connection: Connection, place: str) -> None:
    """Make the tables where there are none. Raises Invalid for newer ones, Denied, NoSpace, Unavailable."""
    if await _version(connection) < len(MIGRATIONS):
        await _migrate(connection)
    await check(connection, place)


async def check(connection: Connection, place: str) -> None:
    """Bring older tables up to date. Raises NotFound where there are none, Invalid for newer ones, Denied, Unavailable."""
    version = await _version(connection)
    if version == 0:
        raise NotFound(f"the database {place} holds no workspace of agentfs")
    if version > len(MIGRATIONS):
        raise Invalid(
            f"the tables in {place} have version {version}, this program knows up to {len(MIGRATIONS)}: upgrade agentfs"
        )
    if version < len(MIGRATIONS):
        await _migrate(connection)


async def _version(connection: Connection) -> int:
    ((there,),) = await connection.ask(Statement(b"SELECT count(to_regclass('agentfs_schema'))", kept=False))
    if not there:
        return 0
    ((version,),) = await connection.ask(Statement(_SCHEMA_VERSION, kept=False))
    return int(version)


async def _migrate(connection: Connection) -> None:
    async with connection.transaction():
        await connection.ask(Statement(b"SELECT pg_advisory_xact_lock($1)", (_LOCK,), kept=False))
        # Another process may have done it while we waited. Creating looks anew; to_regclass would repeat what it saw before.
        await connection.ask(Statement(_SCHEMA, kept=False))
        await connection.ask(Statement(_SCHEMA_START, kept=False))
        ((version,),) = await connection.ask(Statement(_SCHEMA_VERSION, kept=False))
        for step in MIGRATIONS[version:]:
            for sql in step:
                await connection.ask(Statement(sql, kept=False))
        if version < len(MIGRATIONS):
            await connection.ask(Statement(b"UPDATE agentfs_schema SET version = $1", (len(MIGRATIONS),), kept=False))


class Found(NamedTuple):
    """A journal's number, and the position of the first entry that it ever had or will have."""

    journal: int
    first: Position


async def enter(connection: Connection, workspace: str, first: Position, place: str) -> None:
    """Add an empty journal for `workspace`. Raises Exists, Denied, NoSpace, Unavailable."""
    try:
        await connection.ask(Statement(_ENTER, (workspace, first), kept=False))
    except Exists:
        raise Exists(f"there is a journal of the workspace {workspace} in {place} already") from None


async def find(connection: Connection, workspace: str, place: str) -> Found:
    """The workspace's journal. Raises NotFound, Denied, Unavailable."""
    rows = await connection.ask(Statement(_FIND, (workspace,), kept=False))
    if not rows:
        raise NotFound(f"there is no journal of the workspace {workspace} in {place}")
    return Found(rows[0][0], Position(rows[0][1]))


async def remove(connection: Connection, journal: int) -> None:
    """Take a journal away, all of it or nothing. Raises Denied, Unavailable."""
    async with connection.transaction():
        for statement in _REMOVE:
            await connection.ask(Statement(statement, (journal,), kept=False))


async def has_notifications(connection: Connection) -> bool:
    """Whether the server notifies: not every one that speaks PostgreSQL's protocol does, and some only pretend."""
    notify = Statement(b"SELECT pg_notify('agentfs_probe', '')", kept=False)
    try:
        await connection.ask(Statement(b"LISTEN agentfs_probe", kept=False), then=notify)
        await connection.ask(Statement(b"UNLISTEN agentfs_probe", kept=False))
    except NotSupported:
        return False
    # A session's own notification comes before the end of the transaction's answer: there is nothing to wait for.
    return bool(await connection.heard(0))


def listen(journal: int) -> Statement:
    """Be notified of what is appended from here on."""
    return Statement(b"LISTEN agentfs_%d" % journal, kept=False)


def ring(journal: int) -> Statement:
    """Notify those who listen of the tail."""
    return Statement(_RING, (journal,))


def append(journal: int, payload: bytes) -> Statement:
    """Put `payload` behind the last entry; gives its position, and nothing if there is no such journal any more."""
    return Statement(_APPEND, (journal, payload))


def tail(journal: int) -> Statement:
    """Gives the last entry's position."""
    return Statement(_TAIL, (journal,))


def entries(journal: int, after: Position, limit_bytes: int) -> Statement:
    """Gives positions and payloads behind `after`: at least one, and no more than `limit_bytes` and PORTION_ENTRIES hold."""
    return Statement(_ENTRIES, (journal, after, limit_bytes, PORTION_ENTRIES))


def beat(journal: int, session: int) -> Statement:
    """Count a session's heartbeat up by one."""
    return Statement(_BEAT, (journal, session))


def beats(journal: int) -> Statement:
    """Gives each session's number and heartbeat count."""
    return Statement(_BEATS, (journal,))


def forget_beat(journal: int, session: int) -> Statement:
    """Remove a session's heartbeat."""
    return Statement(_FORGET_BEAT, (journal, session))


def trim_some(journal: int, before: Position) -> Statement:
    """Forget a bounded number of the oldest entries in front of `before`; gives how many."""
    return Statement(_TRIM, (journal, before, _TRIM_STEP))


def pointer(journal: int) -> Statement:
    """Gives the pointer, and nothing if there is none."""
    return Statement(_POINTER, (journal,))


def point(journal: int, position: Position, text: bytes) -> Statement:
    """Replace the pointer unless it is for a later position."""
    return Statement(_POINT, (journal, position, text))
