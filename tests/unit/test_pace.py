"""Pace: a burst at once, then so many a second, and no debt for what was done without waiting."""

from random import Random

import trio

from agentfs.workspace.pace import Pace
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time


@in_virtual_time
async def test_a_burst_goes_at_once_and_the_rest_at_the_pace() -> None:
    pace = Pace(VirtualRuntime(Random(1)), burst=3, per_second=10.0)
    began = trio.current_time()
    for _ in range(23):
        await trio.sleep(pace.count())
    assert round(trio.current_time() - began, 6) == 2.0


@in_virtual_time
async def test_who_did_not_wait_leaves_no_debt() -> None:
    pace = Pace(VirtualRuntime(Random(1)), burst=3, per_second=10.0)
    for _ in range(1000):
        pace.count()
    assert pace.count() <= 0.1 + 1e-9
