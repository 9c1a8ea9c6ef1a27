"""Findings: what a check has to say about a workspace, as values, and how files are named in them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from agentfs.model.ids import ROOT_INO, Ino
from agentfs.state.tables import Tables

Kind = Literal["journal", "state", "rule", "replica", "missing", "damaged", "lost", "unknown"]
"""Where to look: the journal, a State file, the rules of the tree, a replica as a whole, or segments in replicas."""

FINDINGS_MAX: Final = 100
"""Findings of one sort that are listed one by one; of what is more there is one that counts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what was found. A note is worth knowing and needs no mending."""

    kind: Kind
    message: str
    severity: Literal["fault", "note"] = "fault"


def printable(text: str) -> str:
    """The text on one line, whatever was in it."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def name_of(tables: Tables, ino: Ino) -> str:
    """A path that leads to an inode, or `inode N`: also in a State whose names are damaged, where they may run in a circle."""
    parts: list[str] = []
    passed: set[Ino] = set()
    at = ino
    while at != ROOT_INO:
        row = tables.db.execute("SELECT parent, name FROM dentries WHERE ino = ? LIMIT 1", (at,)).fetchone()
        if row is None or at in passed:
            return f"inode {ino}"
        passed.add(at)
        parts.append(printable(bytes(row[1]).decode(errors="backslashreplace")))
        at = Ino(row[0])
    return "/".join(reversed(parts)) or "/"


def names_of(tables: Tables, inos: Iterable[Ino]) -> str:
    """The first of some files by name, and how many more there are."""
    distinct = list(dict.fromkeys(inos))
    more = len(distinct) - 1
    return name_of(tables, distinct[0]) + (f" and {more} more file{'s' if more > 1 else ''}" if more > 0 else "")
