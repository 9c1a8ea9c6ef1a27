"""The rules that `apply` keeps, as queries that find whatever in a State breaks them: apart from the code that keeps them."""

from typing import Any, Final, NamedTuple

from agentfs.model.extents import SEGMENT_MAX
from agentfs.model.ids import ROOT_INO, Ino
from agentfs.model.replica import MEMBER
from agentfs.model.session import OPEN
from agentfs.state.tables import Tables
from agentfs.workspace.findings import FINDINGS_MAX, Finding
from agentfs.workspace.fsck_leases import check_leases
from agentfs.workspace.paths import path_of, printable


class _Rule(NamedTuple):
    """A query for what breaks a rule. Its first column is an inode or 0; `says` is given its name and the other columns."""

    says: str
    query: str


_IS_DIR: Final = "mode & 61440 = 16384"
_IS_FILE: Final = "mode & 61440 = 32768"
_MEMBERS: Final = f"SELECT replica FROM replicas WHERE standing = {MEMBER}"

_NAMES: Final = [
    _Rule(
        "there is no root directory",
        f"SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM inodes WHERE ino = {ROOT_INO} AND {_IS_DIR} AND parent = {ROOT_INO})",
    ),
    _Rule(
        "{0}: its name {1} leads to inode {2}, which does not exist",
        "SELECT parent, name, ino FROM dentries WHERE ino NOT IN (SELECT ino FROM inodes)",
    ),
    _Rule(
        "{0} holds the name {1} and is no directory",
        f"SELECT parent, name FROM dentries WHERE parent NOT IN (SELECT ino FROM inodes WHERE {_IS_DIR})",
    ),
    _Rule(
        "{0} has {2} names, its link count says {1}",
        "SELECT ino, nlink, names FROM (SELECT ino, mode, nlink, (SELECT count(*) FROM dentries WHERE ino = i.ino) AS names"
        f" FROM inodes i) WHERE NOT {_IS_DIR} AND nlink != names",
    ),
    _Rule(
        "{0} has {2} subdirectories, its link count says {1}",
        "SELECT ino, nlink, below FROM (SELECT ino, mode, nlink, (SELECT count(*) FROM dentries d JOIN inodes c"
        f" ON c.ino = d.ino WHERE d.parent = i.ino AND c.{_IS_DIR}) AS below FROM inodes i)"
        f" WHERE {_IS_DIR} AND nlink != 2 + below",
    ),
    _Rule(
        "{0} is a directory with {1} names instead of one",
        "SELECT ino, names FROM (SELECT ino, mode, (SELECT count(*) FROM dentries WHERE ino = i.ino) AS names FROM inodes i)"
        f" WHERE {_IS_DIR} AND names != (ino != {ROOT_INO})",
    ),
    _Rule(
        "{0} has its name in inode {2}, its parent is said to be inode {1}",
        "SELECT i.ino, i.parent, d.parent FROM inodes i JOIN dentries d ON d.ino = i.ino WHERE i.parent != "
        f"CASE WHEN i.{_IS_DIR} THEN d.parent ELSE 0 END",
    ),
    _Rule(
        "{0} cannot be reached from the root directory",
        f"WITH RECURSIVE reached (ino) AS (SELECT {ROOT_INO} UNION"
        " SELECT d.ino FROM reached r JOIN dentries d ON d.parent = r.ino)"
        " SELECT ino FROM inodes WHERE ino NOT IN reached AND nlink > 0",
    ),
    _Rule(
        "{0} has no name and is nobody's orphan",
        "SELECT ino FROM inodes WHERE nlink = 0 AND ino NOT IN (SELECT ino FROM orphans)",
    ),
    _Rule(
        "{0} is an orphan and has a name, or does not exist",
        "SELECT ino FROM orphans WHERE ino NOT IN (SELECT ino FROM inodes WHERE nlink = 0)",
    ),
    _Rule(
        "{0} is the orphan of session {1}, which is not open",
        f"SELECT ino, session FROM orphans WHERE session NOT IN (SELECT session FROM sessions WHERE standing = {OPEN})",
    ),
]

_CONTENT: Final = [
    _Rule(
        "{0} holds bytes from {1} to {2} and is no file",
        f'SELECT ino, "offset", "offset" + length FROM extents WHERE ino NOT IN (SELECT ino FROM inodes WHERE {_IS_FILE})',
    ),
    _Rule(
        "{0}: its bytes from {1} to {2} overlap with those from {3}",
        'SELECT ino, "offset", "offset" + length, behind FROM (SELECT ino, "offset", length, lead("offset") OVER'
        ' (PARTITION BY ino ORDER BY "offset") AS behind FROM extents) WHERE "offset" + length > behind',
    ),
    _Rule(
        "{0}: its bytes from {1} to {2} are behind its end at {3}",
        'SELECT e.ino, e."offset", e."offset" + e.length, i.size FROM extents e JOIN inodes i ON i.ino = e.ino'
        ' WHERE e."offset" + e.length > i.size',
    ),
    _Rule(
        "{0}: its bytes from {1} to {2} are not in what is said to hold them",
        'SELECT ino, "offset", "offset" + length FROM extents WHERE length < 1 OR "offset" < 0 OR skip < 0'
        " OR CASE WHEN segment THEN skip + length > raw ELSE length(data) != length END",
    ),
    _Rule(
        "{0}: its bytes from {1} are in segment number {2}, which is not known",
        'SELECT ino, "offset", segment FROM extents WHERE segment AND segment NOT IN (SELECT segment FROM segments)',
    ),
    _Rule(
        "{0} has {2} bytes allocated, it says {1}",
        "SELECT i.ino, i.allocated, coalesce(e.total, 0) FROM inodes i LEFT JOIN"
        " (SELECT ino, sum(length) AS total FROM extents GROUP BY ino) e ON e.ino = i.ino"
        " WHERE i.allocated != coalesce(e.total, 0)",
    ),
    _Rule(
        "{0} has {2} extended attributes, it says {1}",
        "SELECT i.ino, i.xattrs, coalesce(x.total, 0) FROM inodes i LEFT JOIN"
        " (SELECT ino, count(*) AS total FROM xattrs GROUP BY ino) x ON x.ino = i.ino WHERE i.xattrs != coalesce(x.total, 0)",
    ),
    _Rule(
        "{0} has the extended attribute {1} and does not exist",
        "SELECT ino, name FROM xattrs WHERE ino NOT IN (SELECT ino FROM inodes)",
    ),
    _Rule(
        "{0} has {2} versions on record, it says {1}",
        "SELECT i.ino, i.version, coalesce(v.total, 0) FROM inodes i LEFT JOIN"
        " (SELECT ino, count(*) AS total FROM versions GROUP BY ino) v ON v.ino = i.ino"
        " WHERE i.version != coalesce(v.total, 0)",
    ),
    _Rule(
        "{0} has {1} versions on record and does not exist",
        "SELECT ino, count(*) FROM versions WHERE ino NOT IN (SELECT ino FROM inodes) GROUP BY ino",
    ),
]

_TOTALS: Final = [
    _Rule(
        "there are {2} inodes, the counter says {1}",
        "SELECT 0, value, (SELECT count(*) FROM inodes) AS actual FROM counters WHERE name = 'inodes' AND value != actual",
    ),
    _Rule(
        "{2} bytes are allocated, the counter says {1}",
        "SELECT 0, value, (SELECT coalesce(sum(allocated), 0) FROM inodes) AS actual FROM counters"
        " WHERE name = 'bytes' AND value != actual",
    ),
    _Rule(
        "{2} bytes are inline, the counter says {1}",
        "SELECT 0, value, (SELECT coalesce(sum(length), 0) FROM extents WHERE segment = 0) AS actual FROM counters"
        " WHERE name = 'inline' AND value != actual",
    ),
    _Rule(
        "the counter {1} is at {2}, and {3} was given out already",
        "SELECT 0, name, value, used FROM (SELECT name, value, CASE name WHEN 'cookie' THEN (SELECT max(cookie) FROM dentries)"
        " WHEN 'session' THEN (SELECT max(session) FROM sessions) WHEN 'segment' THEN (SELECT max(segment) FROM segments)"
        " END AS used FROM counters) WHERE used > value",
    ),
    _Rule(
        f"segment {{1}} is said to have {{2}} bytes: a segment has 1 to {SEGMENT_MAX}",
        f"SELECT 0, lower(hex(name)), size FROM segments WHERE size NOT BETWEEN 1 AND {SEGMENT_MAX}",
    ),
    _Rule(
        "replica {1} is said to hold segment number {2}, which is not known",
        "SELECT 0, replica, segment FROM placed WHERE segment NOT IN (SELECT segment FROM segments)",
    ),
    _Rule(
        "replica {1} is said to hold segment number {2}, and is no member",
        f"SELECT 0, replica, segment FROM placed WHERE replica NOT IN ({_MEMBERS})",
    ),
    _Rule(
        "segment number {1} is said to be in use {2} times, it is {3} times",
        "SELECT 0, s.segment, uses, coalesce(e.total, 0) FROM segments s LEFT JOIN"
        " (SELECT segment, count(*) AS total FROM extents GROUP BY segment) e ON e.segment = s.segment"
        " WHERE uses != coalesce(e.total, 0)",
    ),
    _Rule(
        "files are said to need {2} bytes of segment number {1}, they need {3}",
        "SELECT 0, s.segment, live, coalesce(e.total, 0) FROM segments s LEFT JOIN"
        " (SELECT segment, sum(stored * length / max(raw, 1)) AS total FROM extents GROUP BY segment) e USING (segment)"
        " WHERE live != coalesce(e.total, 0)",
    ),
    _Rule(
        "segment {1} is said to be collected, and is known",
        "SELECT 0, lower(hex(name)) FROM collected WHERE name IN (SELECT name FROM segments)",
    ),
    _Rule(
        "replica {1} lacks segment number {2} of {3} bytes, and is not said to",
        f"SELECT 0, r.replica, s.segment, s.size FROM ({_MEMBERS}) r JOIN segments s ON s.uses > 0 WHERE NOT EXISTS"
        " (SELECT 1 FROM placed WHERE segment = s.segment AND replica = r.replica) AND NOT EXISTS"
        " (SELECT 1 FROM lacking WHERE segment = s.segment AND replica = r.replica AND size = s.size)",
    ),
    _Rule(
        "replica {1} is said to lack segment number {2}, and does not",
        "SELECT 0, replica, segment FROM lacking l WHERE EXISTS"
        " (SELECT 1 FROM placed WHERE segment = l.segment AND replica = l.replica)"
        f" OR replica NOT IN ({_MEMBERS}) OR segment NOT IN (SELECT segment FROM segments WHERE uses > 0)",
    ),
]


def check_rules(tables: Tables) -> list[Finding]:
    """Every rule that the State breaks. Reads all of it."""
    tables.flush()
    broken = [finding for rule in (*_NAMES, *_CONTENT, *_TOTALS) for finding in _broken(tables, rule)]
    return broken + check_leases(tables)


def _broken(tables: Tables, rule: _Rule) -> list[Finding]:
    rows = tables.db.execute(f"SELECT * FROM ({rule.query}) LIMIT {FINDINGS_MAX + 1}").fetchall()
    findings = [Finding("rule", _line(tables, rule, row)) for row in rows[:FINDINGS_MAX]]
    if len(rows) > FINDINGS_MAX:
        findings.append(Finding("rule", f"State at position {tables.position}: more of the kind: {findings[-1].message}"))
    return findings


def _line(tables: Tables, rule: _Rule, row: tuple[Any, ...]) -> str:
    ino, *rest = row
    subject = f"{path_of(tables, Ino(ino))} (inode {ino})" if ino else ""
    shown = [printable(each.decode(errors="backslashreplace")) if isinstance(each, bytes) else each for each in rest]
    return f"State at position {tables.position}: {rule.says.format(subject, *shown)}"
