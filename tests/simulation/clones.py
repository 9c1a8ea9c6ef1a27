"""Copies of a session: what a snapshot of a virtual machine leaves running under a number that is another's too."""

from random import Random

import trio

from agentfs.journal.contract import Journal
from agentfs.journal.memory import MemoryLog
from agentfs.model.codec import decode_entry
from agentfs.model.errors import AgentfsError
from agentfs.model.ids import ROOT_INO, Ino, Position, TxnNumber, first_ino
from agentfs.state.apply import apply_entry
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.follower import Follower
from agentfs.workspace.session import Identity, close_session, open_next_session
from agentfs.workspace.workspace import Workspace
from tests.simulation.entries import DIRECTORY, make
from tests.simulation.evidence import Evidence
from tests.simulation.runtime import VirtualRuntime

ROUNDS = 3
"""Directories that a copy makes."""


async def run_copy(workspace: Workspace, evidence: Evidence, log: MemoryLog, journal: Journal, random: Random) -> None:
    """Go on as a copy of a mount's session: send what is pending there, then make directories, one after the other."""
    original = workspace._core.committer
    if original.lost or original._given_up:
        return
    evidence.copies += 1
    number = evidence.copies
    evidence.copied.add(original.session)
    tables = _state_at(log, original.tables.position)
    runtime = VirtualRuntime(random, skew_ns=(1000 + number) * 10**12)
    committer = Committer(journal, tables, original.session, runtime)
    lost = trio.Event()
    committer.on_lost = lambda leased: lost.set()
    pending = original.transactions
    if pending:
        committer._number = TxnNumber(pending[0].number - 1)
    for transaction in pending:
        try:
            committer.submit(transaction.changes)
        except AgentfsError:
            # It builds on something that will abort: the copy goes its own way from here on.
            break
    ino = Ino(workspace._core.next_ino)
    try:
        async with trio.open_nursery() as nursery:
            for task in (committer.run, Follower(journal, committer, runtime).run):
                nursery.start_soon(task)
            nursery.start_soon(_join_again, committer, journal, runtime, lost)
            for each in range(ROUNDS):
                await trio.sleep(random.choice((0.0, 0.1, 2.0)))
                name = b"copy-%d-%d" % (number, each)
                own = lost.is_set() and not committer.lost
                base = Ino(first_ino(committer.session) + each) if own else Ino(ino + each)
                try:
                    await committer.commit([make(base, name, parent=ROOT_INO, mode=DIRECTORY)])
                except AgentfsError:
                    continue
                evidence.made.add(name)
            if lost.is_set():
                await close_session(committer, journal)
            nursery.cancel_scope.cancel()
    finally:
        tables.close()


async def _join_again(committer: Committer, journal: Journal, runtime: VirtualRuntime, lost: trio.Event) -> None:
    """What membership does when a session is lost, for a session without files or locks."""
    await lost.wait()
    registration = await open_next_session(committer, journal, runtime, Identity(host="copy", pid=1))
    committer.adopt(registration.session, lambda transaction: False)


def _state_at(log: MemoryLog, position: Position) -> Tables:
    tables = open_tables(None)
    for number, payload in enumerate(log.payloads[:position], 1):
        apply_entry(tables, decode_entry(payload), Position(number))
        tables.settle()
    return tables
