"""Filling the mirror: what a replica lacks is found and given, and how far each is is known."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from agentfs.journal.contract import Record
from agentfs.journal.memory import MemoryLog
from agentfs.journal.mirror import encode_mirrored, mirror_key
from agentfs.model.codec import encode_entry
from agentfs.model.errors import Unavailable
from agentfs.model.ids import Position, ReplicaId
from agentfs.workspace.mirror_filling import LOOK_AGAIN_SECONDS, RETRY_SECONDS, RIPE_SECONDS, MirrorFilling
from agentfs.workspace.mirror_holdings import RUNS_MAX, Holdings
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.faulty_replicas import ONE, THREE, TWO, Faulty
from tests.unit.mirroring import Mirroring, an_entry, is_whole, keys, mirroring


class Filled:
    """A mirror and the chore that fills it, which runs when a test says so."""

    def __init__(self, made: Mirroring) -> None:
        self.made = made
        self.filling = MirrorFilling(made.mirror, made.journal, made.replicated, made.replicas.runtime)
        made.replicated.on_returned = self.filling.returned

    async def run(self) -> None:
        """Do the chore until there is no more to do at once."""
        while await self.filling.run_once():
            pass

    async def run_for(self, seconds: float) -> None:
        """Do the chore every now and then."""
        for _ in range(int(seconds)):
            await trio.sleep(1)
            await self.run()

    def position(self, replica: ReplicaId) -> Position | None:
        """Up to where a replica is known to have everything."""
        return self.made.mirror.holdings.position(replica)


@asynccontextmanager
async def filled(log: MemoryLog, replication: str = "quorum") -> AsyncIterator[Filled]:
    """The chore over three replicas."""
    async with mirroring(log, replication, timeout=5) as made:
        yield Filled(made)


def log_of(count: int, *, first: int = 1) -> MemoryLog:
    """A journal that nobody has mirrored."""
    log = MemoryLog(Position(first))
    log.payloads.extend(encode_entry(an_entry(number)) for number in range(first, first + count))
    return log


@in_virtual_time
async def test_empty_replicas_are_given_everything() -> None:
    async with filled(log_of(50)) as chore:
        assert chore.position(ONE) is None
        await chore.run()
        assert [chore.position(each) for each in (ONE, TWO, THREE)] == [50, 50, 50]
        assert all(is_whole(store, chore.made.log) for store in chore.made.replicas.all)
        assert chore.made.mirror.position == 50


@in_virtual_time
async def test_what_a_replica_missed_while_it_was_away_is_given_when_it_returns() -> None:
    async with filled(log_of(3)) as chore:
        await chore.run()
        three = chore.made.replicas.three
        three.error = Unavailable("gone")
        for _ in range(8):
            await chore.made.mirror.reach(chore.made.append())
        await chore.run_for(RIPE_SECONDS + 5)
        assert (chore.position(THREE), chore.position(ONE)) == (3, 11)
        three.error = None
        await chore.run_for(90)
        assert chore.position(THREE) == 11
        assert is_whole(three, chore.made.log)


@in_virtual_time
async def test_gaps_are_filled_and_nothing_else() -> None:
    async with filled(log_of(20)) as chore:
        await chore.run()
        three = chore.made.replicas.three
        whole = three.holds(mirror_key(Position(1), Position(20)))
        assert whole is not None
        records = [Record(Position(at), payload) for at, payload in enumerate(chore.made.log.payloads, 1)]
        three.lose()
        for run in (records[2:5], records[9:10]):
            await three.put(mirror_key(run[0].position, run[-1].position), encode_mirrored(run))
        chore.filling.returned(THREE)
        assert chore.position(THREE) is None
        await chore.run()
        assert keys(three) == ["1-2", "3-5", "6-9", "10-10", "11-20"]
        assert is_whole(three, chore.made.log)


@in_virtual_time
async def test_an_object_that_was_torn_does_not_count() -> None:
    async with filled(log_of(5)) as chore:
        await chore.made.replicas.two.put(mirror_key(Position(1), Position(5)), b"")
        await chore.made.replicas.two.put(mirror_key(Position(4), Position(9)), b"AFM1")
        await chore.run()
        assert chore.position(TWO) == 5
        assert keys(chore.made.replicas.two).count("1-5") == 1


@in_virtual_time
async def test_what_others_put_is_looked_for_before_it_is_given() -> None:
    async with filled(log_of(5)) as chore:
        await chore.run()
        puts = [store.puts for store in chore.made.replicas.all]
        last = chore.made.append(mirrored=5)
        body = encode_mirrored([Record(last, chore.made.log.payloads[-1])])
        for store in chore.made.replicas.all:
            await Faulty.put(store, mirror_key(last, last), body)
        await chore.run_for(2 * RIPE_SECONDS)
        assert chore.position(ONE) == 6
        assert [store.puts - 1 for store in chore.made.replicas.all] == puts


@in_virtual_time
async def test_what_a_checkpoint_stands_in_for_is_not_given() -> None:
    async with filled(log_of(100)) as chore:
        for position in (40, 60, 80):
            await chore.made.replicas.one.put(f"checkpoints/{position:016x}-{'ab' * 32}.zst", b"x")
        await chore.run()
        assert keys(chore.made.replicas.one) == ["61-100"]
        assert keys(chore.made.replicas.two) == ["1-100"]
        assert [chore.position(each) for each in (ONE, TWO)] == [100, 100]


@in_virtual_time
async def test_what_the_journal_has_forgotten_is_passed_over() -> None:
    async with filled(log_of(30, first=71)) as chore:
        await chore.run()
        assert keys(chore.made.replicas.one) == ["71-100"]
        assert chore.position(ONE) == 100


@in_virtual_time
async def test_a_replica_that_fails_rests_and_the_others_go_on() -> None:
    async with filled(log_of(10)) as chore:
        chore.made.replicas.two.put_error = Unavailable("slow down")
        await chore.run()
        puts = chore.made.replicas.two.puts
        await chore.run()
        assert chore.made.replicas.two.puts == puts
        assert chore.position(THREE) == 10
        chore.made.replicas.two.put_error = None
        await trio.sleep(RETRY_SECONDS + 1)
        await chore.run()
        assert chore.position(TWO) == 10


@in_virtual_time
async def test_what_a_replica_lost_is_noticed_one_day() -> None:
    async with filled(log_of(10)) as chore:
        await chore.run()
        chore.made.replicas.two.lose()
        await chore.made.mirror.reach(chore.made.append())
        await trio.sleep(LOOK_AGAIN_SECONDS)
        await chore.run()
        await chore.run_for(2 * RIPE_SECONDS)
        assert is_whole(chore.made.replicas.two, chore.made.log)


@in_virtual_time
async def test_an_idle_workspace_is_not_listed() -> None:
    async with filled(log_of(10)) as chore:
        await chore.run()
        chore.made.replicas.one.error = AssertionError("it is asked")  # type: ignore[assignment]
        for _ in range(3):
            await trio.sleep(LOOK_AGAIN_SECONDS)
            await chore.run()
        chore.made.replicas.one.error = None


@in_virtual_time
async def test_what_lags_says_by_how_much() -> None:
    async with filled(log_of(3)) as chore:
        await chore.run()
        assert chore.made.mirror.lag_seconds(Position(3)) == 0
        runtime = chore.made.replicas.runtime
        runtime.now_ns = lambda: 60 * 10**9  # type: ignore[method-assign]
        chore.made.append(5)
        assert chore.made.mirror.lag_seconds(Position(3)) == 60 - 4
        assert chore.made.mirror.lag_seconds(Position(6)) == 60 - 7
        assert chore.made.mirror.lag_seconds(Position(1)) is None


# ---- holdings


def test_nothing_is_known_before_a_look() -> None:
    holdings = Holdings()
    holdings.given(ONE, (Position(1), Position(5)))
    assert (holdings.position(ONE), holdings.gaps(ONE, Position(9))) == (None, [])


def test_what_is_given_during_a_look_counts() -> None:
    holdings = Holdings()
    holdings.begin(ONE)
    holdings.given(ONE, (Position(6), Position(9)))
    assert holdings.position(ONE) is None
    holdings.found(ONE, [(Position(1), Position(3)), (Position(2), Position(5))], base=Position(0))
    assert holdings.position(ONE) == 9
    assert holdings.gaps(ONE, Position(11)) == [(10, 11)]


def test_runs_overlap_and_a_checkpoint_is_a_beginning() -> None:
    holdings = Holdings()
    holdings.begin(ONE)
    holdings.found(ONE, [(Position(8), Position(12)), (Position(15), Position(15))], base=Position(10))
    assert holdings.position(ONE) == 12
    assert holdings.gaps(ONE, Position(16)) == [(13, 14), (16, 16)]
    assert holdings.gaps(ONE, Position(9)) == []


def test_too_many_runs_are_forgotten() -> None:
    holdings = Holdings()
    holdings.begin(ONE)
    holdings.found(ONE, [], base=Position(0))
    for number in range(1, 2 * RUNS_MAX + 4, 2):
        holdings.given(ONE, (Position(number), Position(number)))
    assert holdings.position(ONE) is None
