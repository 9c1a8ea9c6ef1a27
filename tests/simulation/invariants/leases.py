"""Leases: no two hold what conflicts, nobody is passed over again and again, and at the end nothing is left of any of them."""

from agentfs.model.session import OPEN
from tests.simulation.evidence import Evidence

OVERTAKEN_MAX = 4
"""How often others may be granted what a request waits for, who came later: sessions that extend what they hold already."""


def check(evidence: Evidence) -> list[str]:
    """What the witness and the processes saw, and what is left in State when everybody has gone."""
    witness = evidence.witness
    wrong = [*witness.wrong, *evidence.clashes]
    for (key, session, number), times in sorted(witness.overtaken.items()):
        if times > OVERTAKEN_MAX:
            wrong.append(f"request {number} of session {session} for {key} was overtaken {times} times")
    wrong += [f"{key} still has {leases}" for key, leases in sorted(witness.tables.leases.items())]
    left = [session for session, each in witness.tables.sessions.items() if each.standing == OPEN]
    return wrong + [f"session {session} is still open" for session in left]
