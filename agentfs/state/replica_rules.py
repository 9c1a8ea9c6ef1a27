"""The rules for replicas and segments: which there are, who holds which, who may come and go, what is collected."""

from msgspec.structs import replace

from agentfs.model.changes import (
    REPLICA_MAX,
    AddReplica,
    AddSegment,
    Collect,
    Deleted,
    Misplaced,
    Placed,
    RemoveReplica,
    Unneeded,
)
from agentfs.model.errors import Collected, Exists, Invalid, NotFound, Unavailable
from agentfs.model.ids import ReplicaId
from agentfs.model.replica import MEMBER, REMOVED, Replica
from agentfs.state.queries import held_only_by
from agentfs.state.step import Rules, Step


def _add_segment(step: Step, change: AddSegment) -> None:
    if step.tables.may_be_collected(change.name, change.since):
        raise Collected("segments were collected since it was put, and it may have been one of them")
    segment = step.tables.segment_id(change.name)
    if segment is None:
        segment = step.tables.put_segment(change.name, change.size, change.time_ns)
    else:
        step.tables.note_unneeded(segment, 0)
    for replica in change.replicas:
        if _is_member(step, replica):
            step.tables.place(segment, replica)
    if change.replicas and not step.tables.replicas_with(segment):
        # It was put before they were removed, and nobody else would ever have it.
        raise Unavailable("every replica that holds the data was removed meanwhile")


def _placed(step: Step, change: Placed) -> None:
    segment = step.tables.segment_id(change.name)
    if segment is not None and _is_member(step, change.replica):
        step.tables.place(segment, change.replica)


def _misplaced(step: Step, change: Misplaced) -> None:
    segment = step.tables.segment_id(change.name)
    if segment is not None and _is_member(step, change.replica):
        step.tables.displace(segment, change.replica)


def _unneeded(step: Step, change: Unneeded) -> None:
    for name in change.names:
        segment = step.tables.segment_id(name)
        if segment is not None and step.tables.waits_since(segment) == 0:
            step.tables.note_unneeded(segment, change.time_ns)


def _collect(step: Step, change: Collect) -> None:
    for name in change.names:
        segment = step.tables.segment_id(name)
        since_ns = step.tables.waits_since(segment) if segment is not None else None
        if segment is not None and since_ns and since_ns <= change.until_ns:
            step.tables.collect(segment, step.position)


def _deleted(step: Step, change: Deleted) -> None:
    for name in change.names:
        step.tables.forget_collected(name)


def _is_member(step: Step, number: ReplicaId) -> bool:
    replica = step.tables.replicas.get(number)
    return replica is not None and replica.standing == MEMBER


def _add_replica(step: Step, change: AddReplica) -> None:
    if not 1 <= change.replica <= REPLICA_MAX:
        raise Invalid(f"a replica's number is 1 to {REPLICA_MAX}")
    if change.replica in step.tables.replicas:
        raise Exists(f"there is, or was, a replica {change.replica} already")
    for member in step.tables.members.values():
        if member.url == change.url:
            raise Exists(f"replica {member.replica} is at {member.url} already")
    step.tables.put_replica(Replica(change.replica, change.url))


def _remove_replica(step: Step, change: RemoveReplica) -> None:
    members = step.tables.members
    if change.replica not in members:
        raise NotFound(f"no replica {change.replica}")
    if len(members) == 1:
        raise Invalid("the last replica cannot be removed: add another before")
    found = step.tables.found
    if found is not None and len(members) <= found.write_quorum:
        raise Invalid(f"a write needs {found.write_quorum} replicas: add another before")
    alone = 0 if change.force else held_only_by(step.tables, change.replica)
    if alone:
        raise Invalid(f"replica {change.replica} alone holds {alone} segments that files need")
    step.tables.put_replica(replace(members[change.replica], standing=REMOVED))
    step.tables.displace_all(change.replica)


RULES: Rules = {
    AddSegment: _add_segment,
    Placed: _placed,
    Misplaced: _misplaced,
    Unneeded: _unneeded,
    Collect: _collect,
    Deleted: _deleted,
    AddReplica: _add_replica,
    RemoveReplica: _remove_replica,
}
