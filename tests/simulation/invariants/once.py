"""A session's transaction number means one transaction, however often it was sent, and they first come in order.

Not so where two machines use one session: there the first that came counts, and the other machine takes another session.
"""

from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """Numbers that mean two things, and numbers that come behind a larger one."""
    wrong = []
    met: dict[tuple[int, int], object] = {}
    highest: dict[int, int] = {}
    for position, entry in enumerate(evidence.entries, 1):
        if not entry.session or entry.session in evidence.copied:
            continue
        for transaction in entry.transactions:
            name = entry.session, transaction.number
            if name in met:
                if met[name] != transaction:
                    wrong.append(f"entry {position}: transaction {name} was another one before")
                continue
            met[name] = transaction
            if transaction.number < highest.get(entry.session, 0):
                wrong.append(f"entry {position}: transaction {name} comes behind number {highest[entry.session]}")
            highest[entry.session] = max(transaction.number, highest.get(entry.session, 0))
    return wrong
