"""The quiet time at the end: no more faults, and what must then come to pass within a bounded time."""

from random import Random
from typing import Final

import trio

from agentfs.model.errors import AgentfsError
from agentfs.state.checksum import checksum
from agentfs.workspace.workspace import Workspace
from tests.simulation.evidence import Evidence
from tests.simulation.gathering import Gathering
from tests.simulation.locker import Locker, Place

SETTLE_SECONDS: Final = 60.0
"""Time for the dead to be judged, and for who was judged to come back."""

WAIT_SECONDS: Final = 60.0
"""How long any lock may take when everybody lives and nobody keeps one."""

STEP_SECONDS: Final = 5.0


async def be_quiet(workspace: Workspace, number: int, evidence: Evidence, gathering: Gathering, random: Random) -> None:
    """What machine `number` does when everybody has stopped working; returns when all are done."""
    await gathering.come()
    await trio.sleep(SETTLE_SECONDS)
    await gathering.come()
    locker = Locker(number, evidence, workspace, random)
    for place in locker.places() * 2:
        await _add_one(locker, evidence, number, place, wait=True)
    await gathering.come()
    # One machine after the other: what nobody holds can be had at once.
    await trio.sleep(number * 2 * STEP_SECONDS)
    for place in locker.places():
        await _add_one(locker, evidence, number, place, wait=False)
    await gathering.come()
    await trio.sleep(STEP_SECONDS)
    tables, committer = workspace._core.tables, workspace._core.committer
    if committer.pending or tables.position != len(evidence.payloads):
        where = f"at {tables.position} of {len(evidence.payloads)} with {committer.pending} pending"
        evidence.unsettled.append(f"actor {number} is {where}, after all was quiet")
    else:
        evidence.states.append((tables.position, checksum(tables), committer.session))
    await gathering.come()


async def _add_one(locker: Locker, evidence: Evidence, number: int, place: Place, *, wait: bool) -> None:
    what = f"actor {number} in the quiet, {place}, wait={wait}"
    began = trio.current_time()
    try:
        if not await locker.add_one(place, wait=wait, patience_seconds=WAIT_SECONDS):
            evidence.late.append(f"{what}: not granted")
    except AgentfsError as error:
        evidence.late.append(f"{what}: {error!r}")
    if trio.current_time() - began > WAIT_SECONDS:
        evidence.late.append(f"{what}: it took {trio.current_time() - began} seconds")
