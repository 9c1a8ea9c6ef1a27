"""Checkpoints of a workspace: when there is one, what a fresh mount reads, what goes behind it, what replaces a bad one."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio

from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.replicated import Replicated, open_replicated
from agentfs.journal.contract import Record
from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.journal.mirror import MIRROR_PREFIX, encode_mirrored, mirror_key
from agentfs.model.changes import Found, Recovered, ReplicaSpec
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Corrupt, Invalid, Stale, Unavailable
from agentfs.model.ids import NO_SESSION, ROOT_INO, Position, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.model.replica import Replica
from agentfs.state.checksum import checksum
from agentfs.state.tables import Tables
from agentfs.workspace import checkpoints as module
from agentfs.workspace import feed
from agentfs.workspace.beginning import Beginning, decode_beginning, encode_beginning, identify, read_beginning
from agentfs.workspace.checkpoints import Checkpoints
from agentfs.workspace.committer import Committer
from agentfs.workspace.feed import open_feed
from agentfs.workspace.fetching import fetch_chosen, fetch_state, list_checkpoints
from agentfs.workspace.fsck import Checked, Report, check_workspace
from agentfs.workspace.replay import open_state
from agentfs.workspace.storage import Opened
from agentfs.workspace.trimming import JournalTrimming, Trimming, forget_copies
from tests.simulation.entries import make, opening
from tests.simulation.faults import Fault, FaultyStore, Script
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

ONE, TWO = ReplicaId(1), ReplicaId(2)
A, B = SessionId(1), SessionId(2)


class Reads(MemoryJournal):
    """A journal that tells what was read of it."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.read_after: list[Position] = []

    async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[Record]:
        self.read_after.append(after)
        return await super().read(after, limit_bytes=limit_bytes)


@dataclass
class Place:
    """A workspace: its journal, its replicas, and the directory of one mount."""

    log: MemoryLog
    stores: dict[ReplicaId, MemoryStore]
    scripts: dict[ReplicaId, Script]
    directory: Path
    runtime: VirtualRuntime

    def append(self, count: int, *, transactions: int = 1) -> None:
        """Entries of session 1, each of which makes files."""
        for _ in range(count):
            self.log.payloads.append(self._entry(transactions))

    def _entry(self, transactions: int) -> bytes:
        number = getattr(self.log, "made", 0)
        self.log.made = number + transactions  # type: ignore[attr-defined]
        made = [
            Transaction(TxnNumber(each), [make(first_ino(A) + each, b"f%d" % each)])
            for each in range(number + 1, number + transactions + 1)
        ]
        return encode_entry(Entry(A, self.runtime.now_ns(), made))

    def open_store(self, replica: Replica) -> Opened:
        return Opened(FaultyStore(self.stores[replica.replica], self.scripts[replica.replica]))

    async def open_state(self, name: str, journal: MemoryJournal | None = None) -> Tables:
        """State as a mount opens it, in a file of that name."""
        journal = journal or MemoryJournal(self.log)
        beginning = await read_beginning(journal)

        async def fetch(path: Path) -> Tables | None:
            assert beginning is not None
            return await fetch_state(path, beginning, self.open_store, self.runtime)

        return await open_state(self.directory / name, journal, beginning, fetch)

    async def replayed(self) -> str:
        """The checksum of a State that never saw a checkpoint. The journal must be whole."""
        tables = await open_state(self.directory / "replayed", MemoryJournal(self.log))
        found = checksum(tables)
        tables.close()
        return found

    def keys(self, replica: ReplicaId, prefix: str = "checkpoints/") -> list[str]:
        return sorted(key for key in self.stores[replica]._objects if key.startswith(prefix))


def founded(history_seconds: int) -> bytes:
    specs = [ReplicaSpec(ONE, "memory:1"), ReplicaSpec(TWO, "memory:2")]
    found = Found("w-0123", "demo", 4, "async", "close", specs, 0, 0, 1, 0, history_seconds)
    return encode_entry(Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), [found])]))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests need not make thousands of files."""
    monkeypatch.setattr(module, "ENTRIES", 60)
    monkeypatch.setattr(module, "TRANSACTIONS", 120)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path, history_seconds=0)


def make_place(directory: Path, *, history_seconds: int) -> Place:
    log = MemoryLog()
    log.payloads += [founded(history_seconds), encode_entry(opening(b"A")), encode_entry(opening(b"B"))]
    stores = {ONE: MemoryStore(), TWO: MemoryStore()}
    return Place(log, stores, {ONE: Script(), TWO: Script()}, directory, VirtualRuntime(Random(1)))


@dataclass
class Mount:
    """The chores of one mount."""

    place: Place
    committer: Committer
    checkpoints: Checkpoints
    trimming: Trimming
    journal_trimming: JournalTrimming
    replicas: Replicated

    async def work(self) -> None:
        """As upkeep does, until there is no more to do."""
        await self.committer.catch_up()
        await self.checkpoints.run_once()
        await self.journal_trimming.run_once()
        while await self.trimming.run_once():
            pass

    async def make(self) -> Beginning:
        """Append entries, and have a checkpoint made of them."""
        self.place.append(module.ENTRIES)
        await trio.sleep(3600)
        await self.work()
        beginning = await read_beginning(MemoryJournal(self.place.log))
        assert beginning is not None
        return beginning


@asynccontextmanager
async def mounted(place: Place, name: str = "mount.sqlite") -> AsyncIterator[Mount]:
    journal = MemoryJournal(place.log)
    tables = await place.open_state(name, journal)
    stores = {replica: place.open_store(Replica(replica, "")).store for replica in place.stores}
    try:
        async with open_replicated(stores, replication="async", runtime=place.runtime) as replicas:
            committer = Committer(journal, tables, B, place.runtime)
            checkpoints = Checkpoints(committer, journal, replicas, place.directory / name, place.runtime)
            trimming = Trimming(replicas, lambda: checkpoints.newest, place.runtime)
            checkpoints.on_found = trimming.found
            journal_trimming = JournalTrimming(journal, tables, place.runtime, checkpoints.trimmed)
            checkpoints.on_older = journal_trimming.want
            yield Mount(place, committer, checkpoints, trimming, journal_trimming, replicas)
    finally:
        tables.close()


# ---- making one


@in_virtual_time
async def test_there_is_none_before_it_saves_a_mount_anything(place: Place) -> None:
    place.append(module.ENTRIES // 2)
    async with mounted(place) as mount:
        await mount.work()
    assert place.keys(ONE) == place.keys(TWO) == []
    assert await MemoryJournal(place.log).pointer() == b""


@in_virtual_time
async def test_many_transactions_in_few_entries_count(place: Place) -> None:
    place.append(4, transactions=module.TRANSACTIONS // 4)
    async with mounted(place) as mount:
        await mount.work()
    assert len(place.keys(ONE)) == len(place.keys(TWO)) == 1


@in_virtual_time
async def test_a_fresh_mount_reads_the_checkpoint_and_what_follows_it(place: Place) -> None:
    async with mounted(place) as mount:
        beginning = await mount.make()
    assert beginning.position == module.ENTRIES + 3
    place.append(7)
    journal = Reads(place.log)
    tables = await place.open_state("fresh.sqlite", journal)
    assert min(journal.read_after) == beginning.position, "nothing in front of it is asked for"
    assert checksum(tables) == await place.replayed()
    tables.close()


@in_virtual_time
async def test_it_says_where_a_reader_begins(place: Place) -> None:
    async with mounted(place) as mount:
        beginning = await mount.make()
    assert [(spec.replica, spec.url) for spec in beginning.replicas] == [(ONE, "memory:1"), (TWO, "memory:2")]
    assert (beginning.workspace, beginning.name, beginning.durability) == ("w-0123", "demo", "close")
    assert beginning.key in place.keys(ONE)
    assert beginning.size == await place.stores[ONE].size(beginning.key)
    place.log.payloads[0] = b"nothing that can be read"
    assert (await identify(MemoryJournal(place.log), beginning)).workspace == "w-0123"


@in_virtual_time
async def test_one_follows_another_after_a_while_only(place: Place) -> None:
    async with mounted(place) as mount:
        await mount.make()
        place.append(module.ENTRIES)
        await trio.sleep(module.INTERVAL_SECONDS / 2)
        await mount.work()
        assert len(place.keys(ONE)) == 1
        await trio.sleep(module.INTERVAL_SECONDS)
        await mount.work()
        assert len(place.keys(ONE)) == 2


@in_virtual_time
async def test_what_another_mount_did_is_not_done_again(place: Place) -> None:
    async with mounted(place, "one.sqlite") as one, mounted(place, "two.sqlite") as two:
        await two.work()
        await one.make()
        await two.work()
    assert len(place.keys(ONE)) == 1


@in_virtual_time
async def test_what_is_pending_is_not_in_it_and_goes_on(place: Place) -> None:
    async with mounted(place) as mount:
        place.append(module.ENTRIES)
        await mount.committer.catch_up()
        mount.committer.submit([make(first_ino(B), b"pending")])
        await mount.checkpoints.run_once()
        assert mount.committer.tables.dentry(ROOT_INO, b"pending") is not None
        mount.committer.abandon()
    tables = await place.open_state("fresh.sqlite")
    assert checksum(tables) == await place.replayed()
    tables.close()


@in_virtual_time
async def test_replicas_that_refuse_leave_things_as_they_were(place: Place) -> None:
    for script in place.scripts.values():
        script.add("put", *[Fault(refused=Unavailable("away"))] * 1000)
    async with mounted(place) as mount:
        place.append(module.ENTRIES)
        await mount.committer.catch_up()
        with pytest.raises(Unavailable):
            await mount.checkpoints.run_once()
        assert await MemoryJournal(place.log).pointer() == b""
        assert sorted(path.name for path in place.directory.iterdir() if "checkpoint" in path.name) == []


# ---- when it is of no use


@in_virtual_time
async def test_a_replica_that_has_it_wrong_is_passed_over(place: Place) -> None:
    async with mounted(place) as mount:
        beginning = await mount.make()
    place.stores[ONE]._objects[beginning.key] = b"x" * beginning.size
    journal = Reads(place.log)
    tables = await place.open_state("fresh.sqlite", journal)
    assert min(journal.read_after) == beginning.position
    tables.close()


@in_virtual_time
async def test_an_older_one_stands_in_for_the_newest(place: Place) -> None:
    async with mounted(place) as mount:
        older = await mount.make()
        newest = await mount.make()
    for store in place.stores.values():
        store._objects[newest.key] = b"x" * newest.size
    journal = Reads(place.log)
    tables = await place.open_state("fresh.sqlite", journal)
    assert min(journal.read_after) == older.position
    assert checksum(tables) == await place.replayed()
    tables.close()


@in_virtual_time
async def test_without_any_the_whole_journal_is_read(place: Place) -> None:
    async with mounted(place) as mount:
        await mount.make()
    for store in place.stores.values():
        store._objects.clear()
    journal = Reads(place.log)
    tables = await place.open_state("fresh.sqlite", journal)
    assert min(journal.read_after) == 0
    tables.close()


@in_virtual_time
async def test_replicas_that_do_not_answer_are_done_without(place: Place) -> None:
    async with mounted(place) as mount:
        await mount.make()
    for script in place.scripts.values():
        script.add("get", *[Fault(refused=Unavailable("away"))] * 1000)
        script.add("list", *[Fault(refused=Unavailable("away"))] * 1000)
    tables = await place.open_state("fresh.sqlite")
    assert checksum(tables) == await place.replayed()
    tables.close()


@in_virtual_time
async def test_a_warm_cache_needs_none(place: Place) -> None:
    async with mounted(place) as mount:
        await mount.make()
    for store in place.stores.values():
        store._objects.clear()
    journal = Reads(place.log)
    tables = await place.open_state("mount.sqlite", journal)
    assert min(journal.read_after) > 0
    tables.close()


# ---- what goes behind it


@in_virtual_time
async def test_each_replica_keeps_two(place: Place) -> None:
    async with mounted(place) as mount:
        made = [await mount.make() for _ in range(4)]
    wanted = sorted(each.key for each in made[-2:])
    assert place.keys(ONE) == place.keys(TWO) == wanted


@in_virtual_time
async def test_a_replica_that_was_away_is_given_the_newest(place: Place) -> None:
    place.scripts[TWO].add("put", *[Fault(refused=Unavailable("away"))] * 2)
    async with mounted(place) as mount:
        beginning = await mount.make()
        await trio.sleep(60)
        mount.trimming.returned(TWO)
        await mount.work()
    assert place.keys(ONE) == place.keys(TWO) == [beginning.key]


@in_virtual_time
async def test_the_mirror_goes_as_far_as_the_replicas_own_older_one_reaches(place: Place) -> None:
    async with mounted(place) as mount:
        older = (await mount.make()).position
        for first, last in ((1, 9), (10, older - 1), (older - 5, older), (older + 1, older + 2)):
            records = [Record(Position(n), b"payload") for n in range(first, last + 1)]
            for store in place.stores.values():
                await store.put(mirror_key(Position(first), Position(last)), encode_mirrored(records))
        await mount.work()
        assert len(place.keys(ONE, MIRROR_PREFIX)) == 4, "with one checkpoint all of the mirror may be needed"
        place.stores[TWO]._objects = {key: body for key, body in place.stores[TWO]._objects.items() if "mirror" in key}
        await mount.make()
    left = [mirror_key(Position(older - 5), Position(older)), mirror_key(Position(older + 1), Position(older + 2))]
    assert place.keys(ONE, MIRROR_PREFIX) == sorted(left)
    assert len(place.keys(TWO, MIRROR_PREFIX)) == 4, "it holds the newest checkpoint alone"


@in_virtual_time
async def test_history_is_kept_for_ever_unless_it_is_said(place: Place) -> None:
    async with mounted(place) as mount:
        for _ in range(3):
            await mount.make()
            await trio.sleep(20000)
    assert place.log.first == 1


@in_virtual_time
async def test_old_entries_in_front_of_the_older_one_go(tmp_path: Path) -> None:
    place = make_place(tmp_path, history_seconds=9000)
    async with mounted(place) as mount:
        made = [await mount.make() for _ in range(4)]
        assert place.log.first == made[1].position + 1, "those of the last two hours and a half are kept"
        assert (await read_beginning(MemoryJournal(place.log))) == mount.checkpoints.beginning
        assert mount.checkpoints.beginning is not None
        assert mount.checkpoints.beginning.first == place.log.first
        await trio.sleep(20000)
        last = await mount.make()
        assert place.log.first == made[-1].position, "the older checkpoint must have what follows it"
    tables = await place.open_state("fresh.sqlite")
    assert tables.position == last.position
    tables.close()


@in_virtual_time
async def test_a_mount_that_was_away_for_longer_than_history_is_kept_begins_again(tmp_path: Path) -> None:
    place = make_place(tmp_path, history_seconds=1)
    (await place.open_state("old.sqlite")).close()
    async with mounted(place) as mount:
        for _ in range(3):
            await mount.make()
    assert place.log.first > 3
    with pytest.raises(Stale):
        await MemoryJournal(place.log).read(Position(2))
    old, fresh = await place.open_state("old.sqlite"), await place.open_state("fresh.sqlite")
    assert checksum(old) == checksum(fresh)
    old.close()
    fresh.close()


@in_virtual_time
async def test_a_trimmed_journal_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    place = make_place(tmp_path, history_seconds=1)
    async with mounted(place) as mount:
        for _ in range(3):
            await mount.make()
    for store in place.stores.values():
        store._objects.clear()
    with pytest.raises(Unavailable, match=r"no checkpoint can be had.*trimmed"):
        await place.open_state("fresh.sqlite")


# ---- readers that mount nothing


async def trimmed(tmp_path: Path) -> tuple[Place, list[Beginning]]:
    """A workspace whose first entries are gone."""
    place = make_place(tmp_path, history_seconds=1)
    async with mounted(place) as mount:
        made = [await mount.make() for _ in range(3)]
    assert place.log.first == made[1].position
    place.append(5)
    return place, made


@in_virtual_time
async def test_the_feed_begins_with_a_checkpoint_that_is_old_enough(tmp_path: Path) -> None:
    place, made = await trimmed(tmp_path)
    fetch = partial(fetch_chosen, open_store=place.open_store, runtime=place.runtime)
    for start in (made[1].position, Position(made[2].position - 1), made[2].position, Position(made[2].position + 2)):
        journal = Reads(place.log)
        async with open_feed(journal, feed.Place(start), fetch) as events:
            await events.pass_over(lambda done, total: None)
            found = await events.read()
        assert found[0].position == start + 1
        assert min(journal.read_after) == made[1 if start < made[2].position else 2].position


@in_virtual_time
async def test_the_feed_says_what_is_not_kept(tmp_path: Path) -> None:
    place, made = await trimmed(tmp_path)
    fetch = partial(fetch_chosen, open_store=place.open_store, runtime=place.runtime)
    for start in (1, 5, made[1].position - 1):
        async with open_feed(MemoryJournal(place.log), feed.Place(Position(start)), fetch) as events:
            with pytest.raises(Stale, match=rf"not kept any more.*can begin behind position {made[2].position}"):
                await events.read()


@in_virtual_time
async def test_the_feed_from_the_beginning_is_what_is_kept(tmp_path: Path) -> None:
    place, made = await trimmed(tmp_path)
    fetch = partial(fetch_chosen, open_store=place.open_store, runtime=place.runtime)
    async with open_feed(MemoryJournal(place.log), feed.BEGINNING, fetch) as events:
        assert events.position == made[1].position
        assert (await events.read())[0].position == made[1].position + 1


async def fsck(place: Place) -> Checked:
    """The check of the workspace, whose files have no content."""

    async def open_stores(members: Mapping[ReplicaId, Replica]) -> Mapping[ReplicaId, MemoryStore]:
        return {number: place.stores[number] for number in members}

    @contextmanager
    def silent(title: str, unit: str) -> Iterator[Report]:
        yield lambda done, total: None

    return await check_workspace(
        workspace="w-0123",
        journal=MemoryJournal(place.log),
        open_stores=open_stores,
        fetch=partial(fetch_chosen, open_store=place.open_store, runtime=place.runtime),
        cache_dir=place.directory,
        runtime=place.runtime,
        stage=silent,
    )


@in_virtual_time
async def test_fsck_begins_with_the_oldest_checkpoint_that_is_reached(tmp_path: Path) -> None:
    place, made = await trimmed(tmp_path)
    checked = await fsck(place)
    assert checked.faults == []
    assert checked.entries == place.log.tail
    (note,) = checked.findings
    assert f"in front of {place.log.first} were trimmed" in note.message
    assert f"checkpoint at position {made[1].position}" in note.message


@in_virtual_time
async def test_fsck_says_that_there_is_nothing_to_begin_with(tmp_path: Path) -> None:
    place, _ = await trimmed(tmp_path)
    for store in place.stores.values():
        store._objects.clear()
    assert "no checkpoint can be read" in (await fsck(place)).faults[0].message


# ---- lines


@in_virtual_time
async def test_a_state_of_a_line_that_was_lost_is_thrown_away(place: Place) -> None:
    """It is at a position that the new line has reached by now, so that the position tells nothing."""
    place.append(10)
    (await place.open_state("ahead.sqlite")).close()
    lost, place.log.payloads = place.log.payloads, place.log.payloads[:9]
    (await place.open_state("prefix.sqlite")).close()
    specs = [ReplicaSpec(ONE, "memory:1"), ReplicaSpec(TWO, "memory:2")]
    recovered = Entry(NO_SESSION, 9, [Transaction(TxnNumber(1), [Recovered("line", specs, 9)])])
    place.log.payloads += [encode_entry(recovered), *(encode_entry(opening(b"x%d" % n)) for n in range(10))]
    assert len(place.log.payloads) > len(lost)
    await point_at_nothing(place, recovered_at=10, incarnation="line")
    expected = await place.open_state("fresh.sqlite")
    for name in ("ahead.sqlite", "prefix.sqlite"):
        tables = await place.open_state(name)
        assert (checksum(tables), tables.incarnation) == (checksum(expected), "line")
        tables.close()
    expected.close()


async def point_at_nothing(place: Place, *, recovered_at: int, incarnation: str) -> None:
    """The pointer of a recovery, whose checkpoint is gone."""
    text = (
        b'{"format":1,"workspace":"w-0123","name":"demo","durability":"close","replicas":[[1,"memory:1"]],"position":%d,'
        b'"key":"checkpoints/%016x-%s.zst","size":1,"schema":4,"recoveries":[{"recovered_at":%d,"incarnation":"%s"}]}'
        % (recovered_at, recovered_at, b"ab" * 32, recovered_at, incarnation.encode())
    )
    await MemoryJournal(place.log).point(Position(recovered_at), text)


# ---- the pointer


def test_a_pointer_is_read_as_it_was_written() -> None:
    beginning = Beginning(
        workspace="w", name="n", durability="fsync", replicas=[ReplicaSpec(ONE, "u")], position=Position(3), key="k", size=5
    )
    assert decode_beginning(encode_beginning(beginning)) == beginning
    assert decode_beginning(b"") is None


def test_a_pointer_of_a_newer_format_is_refused() -> None:
    with pytest.raises(Invalid, match=r"format 2.*upgrade"):
        decode_beginning(b'{"format":2}')


def test_a_damaged_pointer_is_told() -> None:
    for text in (b"{", b'{"format":1}', b"[]"):
        with pytest.raises(Corrupt, match="pointer is damaged"):
            decode_beginning(text)


async def test_a_place_that_was_a_replica_forgets_its_copies_of_the_journal() -> None:
    store = MemoryStore()
    for key in ("mirror/" + "0" * 15 + "1-" + "0" * 15 + "2", "checkpoints/x", "segments/aa/x.seg", "agentfs-replica.json"):
        await store.put(key, b"x")
    await forget_copies(store)
    assert sorted(store._objects) == ["agentfs-replica.json", "segments/aa/x.seg"]


async def test_listing_leaves_out_what_is_no_checkpoint() -> None:
    store = MemoryStore()
    await store.put("checkpoints/whatever", b"x")
    assert await list_checkpoints(store) == []
