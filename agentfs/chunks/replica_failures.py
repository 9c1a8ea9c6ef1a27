"""Failures of replicas: as they are kept, and what those of several amount to."""

from collections.abc import Mapping

from agentfs.model.errors import AgentfsError, Corrupt, Denied, NoSpace, NotFound, Unavailable
from agentfs.model.ids import ReplicaId


def bare(error: AgentfsError) -> AgentfsError:
    """The same error, to be kept or raised once more: without the traceback and the cause, which hold the request's bytes."""
    copy = type(error)(*error.args)
    if isinstance(copy, Unavailable) and isinstance(error, Unavailable):
        copy.retry_after_seconds = error.retry_after_seconds
    return copy


def write_failure(what: str, failures: Mapping[ReplicaId, AgentfsError]) -> AgentfsError:
    """The most telling one: NoSpace before Denied before Unavailable."""
    errors = list(failures.values())
    kinds = [kind for kind in (NoSpace, Denied, Unavailable) if any(isinstance(error, kind) for error in errors)]
    return (kinds[0] if kinds else type(errors[0]))(f"{what} failed: {_reasons(failures)}")


def read_failure(what: str, failures: Mapping[ReplicaId, AgentfsError]) -> AgentfsError:
    """Corrupt if any replica said so, NotFound if all did, and otherwise Unavailable."""
    message = f"{what} failed: {_reasons(failures)}"
    if any(isinstance(error, Corrupt) for error in failures.values()):
        return Corrupt(message)
    if all(isinstance(error, NotFound) for error in failures.values()):
        return NotFound(message)
    return Unavailable(message)


def _reasons(failures: Mapping[ReplicaId, AgentfsError]) -> str:
    return "; ".join(f"replica {replica}: {error}" for replica, error in sorted(failures.items())) or "no replica to ask"
