"""What PostgreSQL's refusals mean here: SQLSTATEs, and what a failed attempt to connect says, as the contract's errors."""

import re
from typing import Final

from agentfs.model.errors import AgentfsError, Corrupt, Denied, Exists, Invalid, NoSpace, NotFound, NotSupported, Unavailable


class Conflict(Unavailable):
    """The server gave this transaction up for another's sake: run again at once it may succeed."""


_EXACT: Final[dict[str, type[AgentfsError]]] = {
    "23505": Exists,  # unique_violation
    "40001": Conflict,  # serialization_failure
    "40P01": Conflict,  # deadlock_detected
    "3D000": NotFound,  # invalid_catalog_name: there is no such database
    "42501": Denied,  # insufficient_privilege
    "42P01": NotFound,  # undefined_table
    "42703": Invalid,  # undefined_column
    "42601": NotSupported,  # syntax_error: all that is sent here is understood by PostgreSQL itself
    "42883": NotSupported,  # undefined_function
    "53100": NoSpace,  # disk_full
    "XX001": Corrupt,  # data_corrupted
    "XX002": Corrupt,  # index_corrupted
}
_BY_CLASS: Final[dict[str, type[AgentfsError]]] = {
    "0A": NotSupported,  # feature_not_supported
    "28": Denied,  # invalid_authorization_specification
}

_REFUSED_CONNECTIONS: Final[tuple[tuple[re.Pattern[str], type[AgentfsError], str], ...]] = (
    (re.compile(r"no password supplied"), Denied, "keep it in a password file (PGPASSFILE), a service file or PGPASSWORD"),
    (
        re.compile(r"authentication failed|role .* does not exist"),
        Denied,
        "look at the user in the URL, and at the password in PGPASSFILE, the service file or PGPASSWORD",
    ),
    (re.compile(r"pg_hba\.conf|not permitted to log in|permission denied"), Denied, "ask the server's administrator"),
    (re.compile(r"database .* does not exist"), NotFound, "create it, or name another one in the URL"),
)


def refusal(sqlstate: str, message: str, place: str) -> AgentfsError:
    """The error for a statement that the server at `place` refused (https://www.postgresql.org/docs/current/errcodes-appendix.html).

    Codes that are not known are Unavailable: what other servers that speak the protocol report, they may not report again.
    """
    kind = _EXACT.get(sqlstate) or _BY_CLASS.get(sqlstate[:2]) or Unavailable
    return kind(f"the journal {place} answers: {_one_line(message)} ({sqlstate})")


def failed_connection(message: str, place: str) -> AgentfsError:
    """The error for an attempt to connect that failed.

    libpq keeps the SQLSTATE of these to itself, so the text decides. Where the server speaks another language all of them are
    Unavailable, with the server's own words.
    """
    for pattern, kind, remedy in _REFUSED_CONNECTIONS:
        if pattern.search(message):
            return kind(f"the journal {place} refuses: {_said(message)}: {remedy}")
    return Unavailable(f"the journal {place} cannot be reached: {_said(message)}")


def lost_connection(message: str, place: str) -> Unavailable:
    """The error for a connection that broke."""
    return Unavailable(f"the journal {place} does not answer: {_one_line(message)}")


def _said(message: str) -> str:
    # "connection to server at …, port … failed: FATAL:  …": the place is named already.
    return _one_line(message.rpartition("failed: ")[2] or message).removeprefix("FATAL: ")


def _one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message).strip()
