"""Linearizability of the arena: what an operation says was so at a moment between its beginning and its answer.

The journal is the order, so an operation that returned before another began comes before it there. One that took effect stands
in the journal between the tail that was there when it began and the one when it was answered. One that was refused saw a tree
that stood between these two, or one with what other processes of its own mount had under way.
"""

from dataclasses import dataclass

from agentfs.model.changes import AnyChange, Link, Make, Rename, Rmdir, Unlink
from agentfs.model.ids import SessionId
from tests.simulation.evidence import Asked, Evidence
from tests.simulation.witness import Done


@dataclass(frozen=True, slots=True)
class _Name:
    """What a change of the arena is known by."""

    verb: str
    old: bytes
    new: bytes


def check(evidence: Evidence) -> list[str]:
    """Operations that say what was not so."""
    effects = [(each, name) for each in evidence.witness.done if (name := _name_of(each.change, evidence)) is not None]
    wrong, used = [], set[int]()
    for asked in sorted(evidence.asked, key=lambda each: each.ended):
        if asked.answer == "done" and not _took_effect(evidence, effects, asked, used):
            wrong.append(f"{asked} has no effect in the journal between")
        elif asked.answer in ("exists", "not found") and not _was_so(evidence, asked):
            wrong.append(f"{asked}: it was never so")
    return wrong


def _took_effect(evidence: Evidence, effects: list[tuple[Done, _Name]], asked: Asked, used: set[int]) -> bool:
    # A link names the inode, not what it was called.
    name = _Name(asked.verb, b"" if asked.verb == "link" else asked.old, asked.new)
    for at, (done, each) in enumerate(effects):
        if at in used or each != name or not asked.begun < done.position <= asked.ended:
            continue
        if done.outcome is None and done.session in _sessions(evidence, asked):
            used.add(at)
            return True
    return asked.verb == "unlink" and _was_removed(evidence, effects, asked)


def _was_removed(evidence: Evidence, effects: list[tuple[Done, _Name]], asked: Asked) -> bool:
    """unlink(2) does not wait: somebody else may have removed or replaced, first, what its mount saw under the name."""
    if any(asked.old not in names for names in evidence.witness.arena_names[max(0, asked.known - 1) : asked.ended]):
        return True
    replaced = ((done, name) for done, name in effects if name.verb == "rename" and asked.old in (name.old, name.new))
    return any(done.outcome is None and asked.known < done.position <= asked.ended for done, _ in replaced)


def _was_so(evidence: Evidence, asked: Asked) -> bool:
    trees = evidence.witness.arena_names[max(0, asked.begun - 1) : asked.ended]
    under_way = [other for other in evidence.asked if other is not asked and _overlaps(other, asked)]
    if asked.answer == "exists":
        return any(asked.new in names for names in trees) or any(other.new == asked.new for other in under_way)
    return any(asked.old not in names for names in trees) or any(other.old == asked.old for other in under_way)


def _overlaps(other: Asked, asked: Asked) -> bool:
    """Whether a process of the same mount was at it at the same time: what it does shows there before it is committed."""
    return other.machine == asked.machine and other.begun <= asked.ended and (not other.answer or other.ended >= asked.begun)


def _sessions(evidence: Evidence, asked: Asked) -> set[SessionId]:
    host = f"host{asked.machine}"
    return {number for number, each in evidence.witness.tables.sessions.items() if each.host == host}


def _name_of(change: AnyChange, evidence: Evidence) -> _Name | None:
    arena = evidence.arena
    match change:
        case Make(parent=parent, name=name) if parent == arena:
            return _Name("make", b"", name)
        case Rename(parent=parent, name=old, new_name=new) if parent == arena:
            return _Name("rename", old, new)
        case Link(parent=parent, name=name) if parent == arena:
            return _Name("link", b"", name)
        case Unlink(parent=parent, name=name) if parent == arena:
            return _Name("unlink", name, b"")
        case Rmdir(parent=parent, name=name) if parent == arena:
            return _Name("rmdir", name, b"")
    return None
