"""Findings: what a check has to say about a workspace, as values, and how files are named in them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from agentfs.model.ids import Ino
from agentfs.state.tables import Tables
from agentfs.workspace.paths import path_of

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


def names_of(tables: Tables, inos: Iterable[Ino]) -> str:
    """The first of some files by name, and how many more there are."""
    distinct = list(dict.fromkeys(inos))
    more = len(distinct) - 1
    return path_of(tables, distinct[0]) + (f" and {more} more file{'s' if more > 1 else ''}" if more > 0 else "")
