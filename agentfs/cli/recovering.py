"""How a workspace is recovered: a journal is made of what replicas hold, beside its place, and is put there at the end."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, cast

import trio
from msgspec.structs import replace

from agentfs.chunks.contract import ChunkStore
from agentfs.cli.amounts import path_text
from agentfs.cli.creation import UNDO_SECONDS, make_root, put_in_place, sync_directory, write_durably
from agentfs.cli.journal_place import JournalPlace, Journals, create_journal, file_place, is_url, open_journal
from agentfs.cli.layout import JOURNAL_FILE, WORKSPACE_FILE, WorkspaceDirectory, check_name
from agentfs.cli.replica_marker import MARKER_FORMAT, MARKER_KEY, PreparedReplica, ReplicaMarker, read_marker
from agentfs.cli.replica_place import Place, check_apart, directory_of, open_place, place_text
from agentfs.cli.workspace_file import FORMAT, Durability, ReplicaPlace, WorkspaceFile, read_workspace_file
from agentfs.journal.contract import Journal
from agentfs.journal.mirror import MIRROR_PREFIX, parse_mirror_key
from agentfs.model.changes import REPLICA_MAX, Recovered, ReplicaSpec
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Busy, Exists, Invalid, NoSpace, NotFound
from agentfs.model.ids import NO_SESSION, Position, ReplicaId, TxnNumber
from agentfs.model.replica import Replica
from agentfs.runtime import Runtime
from agentfs.state.apply import apply_entry
from agentfs.state.checkpoint import hold_file, release_file
from agentfs.state.queries import held_by_none
from agentfs.state.tables import Tables
from agentfs.workspace.beginning import encode_beginning
from agentfs.workspace.checkpoints import describe, pack
from agentfs.workspace.fetching import list_checkpoints
from agentfs.workspace.salvage import Salvage

SET_ASIDE: Final = "set-aside/"
"""What the keys begin with under which copies of entries are kept that the recovered journal does not have."""

Report = Callable[[int, int], None]
"""Told how many entries of how many were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be recovered. `source` and `replicas` are URLs; the workspace has these replicas afterwards and no others.

    `journal`: where hosts share it; None: in a file of this host. `time_ns` is since the epoch.
    """

    name: str
    root: Path
    source: str
    replicas: tuple[str, ...]
    journal: JournalPlace | None
    time_ns: int

    @property
    def directory(self) -> WorkspaceDirectory:
        """Its place."""
        return WorkspaceDirectory(self.root / self.name)


class Outcome(NamedTuple):
    """What came of it.

    `position`: the last entry there is now, of what was there before; `time_ns`: when it was sent, None where only a checkpoint
    tells of it. `checkpoint`: where reading began. `unusable`: the last position of which there is a copy that could not be
    used, as some before it are missing; None if there is none. `unheld`: segments that files need and no replica is known to
    hold. `dropped`: replicas that are members no more.
    """

    workspace: str
    position: Position
    time_ns: int | None
    checkpoint: Position
    unusable: Position | None
    damage: list[str]
    unheld: int
    replicas: list[ReplicaPlace]
    dropped: list[Replica]


class _Source(NamedTuple):
    """A place that is to be a replica. `number`: which one it is already; None for a place that is empty."""

    url: str
    place: Place
    number: ReplicaId | None


async def recover_workspace(plan: Plan, runtime: Runtime, report: Report) -> Outcome:
    """Recover the workspace. Whatever goes wrong, there is no journal of it then.

    Raises Exists for a workspace that has a journal, Invalid and NotFound for what is no replica or holds too little, Denied
    and Unavailable for stores and journals.
    """
    check_name(plan.name)
    check_apart([plan.source, *plan.replicas], plan.directory.path)
    async with AsyncExitStack() as opened:
        sources, workspace = await _open_sources(plan, runtime, opened)
        before = _look_at_target(plan, workspace)
        if plan.journal is not None:
            await Journals(runtime).check_free(plan.journal)
        with ExitStack() as undo:
            make_root(plan.root, undo)
            draft = Path(tempfile.mkdtemp(prefix=f".{plan.name}.", suffix=".recovering", dir=plan.root))
            undo.callback(shutil.rmtree, draft, ignore_errors=True)
            async with AsyncExitStack() as unmake:
                rebuilding = _Rebuilding(plan, workspace, sources, draft, runtime, unmake)
                outcome = await rebuilding.run(report)
                file = rebuilding.file(outcome)
                if before:
                    _put_into(draft, plan.directory, file)
                    shutil.rmtree(draft)
                else:
                    write_durably(draft / WORKSPACE_FILE, file.as_toml().encode())
                    put_in_place(draft, plan.directory.path)
                unmake.pop_all()
            undo.pop_all()
    sync_directory(plan.root)
    return outcome


async def _open_sources(plan: Plan, runtime: Runtime, opened: AsyncExitStack) -> tuple[list[_Source], str]:
    """The places, the one to recover from first, and the workspace's identity."""
    sources: list[_Source] = []
    workspace = ""
    for url in (plan.source, *plan.replicas):
        place = open_place(url, plan.directory.path, runtime)
        opened.push_async_callback(place.store.aclose)
        absent = place.directory is not None and not os.path.lexists(place.directory)
        marker = None if absent and sources else await read_marker(place)
        if marker is None and not sources:
            raise Invalid(f"{place.name} is no replica: it has no {MARKER_KEY}")
        if marker is not None and sources and marker.workspace != workspace:
            raise Exists(f"{place.name} holds {marker.owner}: name another place")
        workspace = workspace or (marker.workspace if marker else "")
        sources.append(_Source(url, place, ReplicaId(marker.replica) if marker else None))
    return sources, workspace


def _look_at_target(plan: Plan, workspace: str) -> bool:
    """Whether the workspace's directory is there still. Raises Exists if it is another's, or has a journal."""
    directory = plan.directory
    if not os.path.lexists(directory.path):
        return False
    if not directory.exists:
        raise Exists(f"{path_text(directory.path)} exists and is no workspace: recover it under another name")
    file = read_workspace_file(directory, root=plan.root)
    if file.workspace != workspace:
        raise Exists(f"{path_text(directory.path)} is another workspace ({file.workspace}): recover it under another name")
    journal = directory.path / (JOURNAL_FILE if is_url(file.journal) else file.journal)
    if os.path.lexists(journal):
        raise Exists(f"workspace {plan.name} has its journal, {path_text(journal)}: move it away if it is to be replaced")
    return True


def _put_into(draft: Path, directory: WorkspaceDirectory, file: WorkspaceFile) -> None:
    """Put the journal and the file into a workspace's directory that is there still."""
    # What SQLite left beside the journal that is lost would be taken for the new one's.
    for part in ("-wal", "-shm"):
        (directory.path / f"{JOURNAL_FILE}{part}").unlink(missing_ok=True)
    for part in ("-wal", ""):
        if (path := draft / f"{JOURNAL_FILE}{part}").exists():
            path.rename(directory.path / path.name)
    write_durably(draft / WORKSPACE_FILE, file.as_toml().encode())
    (draft / WORKSPACE_FILE).replace(directory.file)
    sync_directory(directory.path)


class _Rebuilding:
    """The work on the journal and in the replicas. What has to be undone on a failure goes to `unmake`."""

    def __init__(
        self, plan: Plan, workspace: str, sources: list[_Source], draft: Path, runtime: Runtime, unmake: AsyncExitStack
    ) -> None:
        self._plan = plan
        self._workspace = workspace
        self._sources = sources
        self._draft = draft
        self._runtime = runtime
        self._unmake = unmake
        self._durability = ""
        self._place = plan.journal or file_place(draft / JOURNAL_FILE)
        self._incarnation = runtime.random_bytes(16).hex()

    def file(self, outcome: Outcome) -> WorkspaceFile:
        """What workspace.toml will say."""
        return WorkspaceFile(
            format=FORMAT,
            workspace=self._workspace,
            name=self._plan.name,
            journal=JOURNAL_FILE if self._plan.journal is None else self._plan.journal.url,
            durability=cast(Durability, self._durability),
            replicas=outcome.replicas,
        )

    async def run(self, report: Report) -> Outcome:
        """Read what there is, and write the journal and a checkpoint of it."""
        places = {source.place.name: source.place.store for source in self._sources if source.number is not None}
        state = self._draft / "state.sqlite"
        salvage = Salvage(self._workspace, places, state, self._runtime)
        try:
            await salvage.begin()
            first = Position(salvage.position + 1)
            if salvage.tables.found is None and salvage.end == 0:
                name = self._sources[0].place.name
                raise NotFound(f"{name} holds neither a checkpoint nor a copy of the journal: nothing can be recovered from it")
            await self._create_journal(first)
            async with open_journal(self._place, self._runtime) as journal:
                async for record in salvage.entries():
                    if await journal.append(record.payload) != record.position:
                        raise Busy(f"somebody else writes to the journal {self._place.text}")
                    report(record.position - first + 1, salvage.end - first + 1)
                outcome = await self._go_on(salvage, journal, first)
        finally:
            salvage.close()
        for path in self._draft.glob("state.sqlite*"):
            path.unlink()
        return outcome

    async def _create_journal(self, first: Position) -> None:
        await create_journal(self._place, self._runtime, first=first)
        if self._place.is_shared:
            self._unmake.push_async_callback(self._remove_journal)

    async def _remove_journal(self) -> None:
        with trio.move_on_after(UNDO_SECONDS, shield=True), suppress(AgentfsError):
            await Journals(self._runtime).remove(self._place)

    async def _go_on(self, salvage: Salvage, journal: Journal, first: Position) -> Outcome:
        """Begin another line behind the last entry, and put up where readers begin."""
        tables, position = salvage.tables, salvage.position
        found = tables.found
        if found is None:
            raise NotFound(f"the copy of the journal does not reach back to its first entry: {'; '.join(salvage.damage[:1])}")
        self._durability = found.durability
        before = dict(tables.members)
        replicas = await self._name_replicas(tables)
        await self._begin_line(tables, journal, replicas)
        stores = {source.place.name: source.place.store for source in self._sources}
        await self._put_checkpoint(tables, journal, first, stores)
        for store in stores.values():
            await self._set_aside(store, position)
        kept = {place.replica for place in replicas}
        return Outcome(
            workspace=self._workspace,
            position=position,
            time_ns=salvage.time_ns,
            checkpoint=Position(first - 1),
            unusable=salvage.end if salvage.end > position else None,
            damage=salvage.damage,
            unheld=held_by_none(tables),
            replicas=replicas,
            dropped=[replica for number, replica in sorted(before.items()) if number not in kept],
        )

    async def _name_replicas(self, tables: Tables) -> list[ReplicaPlace]:
        """The replicas from now on. Empty places are marked."""
        named: list[ReplicaPlace] = []
        following = max(tables.replicas, default=0) + 1
        for source in self._sources:
            number = source.number
            if number is None:
                if following > REPLICA_MAX:
                    raise Invalid(f"a replica's number is 1 to {REPLICA_MAX}, and all are used up")
                number, following = ReplicaId(following), following + 1
                marker = ReplicaMarker(format=MARKER_FORMAT, workspace=self._workspace, name=self._plan.name, replica=number)
                prepared = PreparedReplica(source.place)
                self._unmake.push_async_callback(prepared.undo)
                await prepared.prepare(marker)
            elif number not in tables.members:
                raise Invalid(f"{source.place.name} is replica {number}, which is no member of the workspace any more")
            named.append(ReplicaPlace(number, self._url_of(source, tables.members.get(number))))
        return named

    def _url_of(self, source: _Source, member: Replica | None) -> str:
        """What State has of a replica that is where it was, as long as only this host has to find it."""
        if member is None or self._plan.journal is not None:
            return source.url
        base = self._plan.directory.path
        here, known = directory_of(source.url, base), directory_of(member.url, base)
        same = here is not None and known is not None and os.path.realpath(here) == os.path.realpath(known)
        return member.url if same else source.url

    async def _begin_line(self, tables: Tables, journal: Journal, replicas: list[ReplicaPlace]) -> None:
        specs = [ReplicaSpec(place.replica, place.url) for place in replicas]
        change = Recovered(self._incarnation, specs, self._plan.time_ns)
        entry = Entry(NO_SESSION, self._plan.time_ns, [Transaction(TxnNumber(1), [change])])
        position = Position(tables.position + 1)
        outcome = apply_entry(tables, entry, position)[0]
        assert outcome is None, "nothing stands against it"
        tables.settle()
        if await journal.append(encode_entry(entry)) != position:
            raise Busy(f"somebody else writes to the journal {self._place.text}")

    async def _put_checkpoint(self, tables: Tables, journal: Journal, first: Position, stores: dict[str, ChunkStore]) -> None:
        position = hold_file(tables, tables.save)
        if position is None:
            raise NoSpace(f"{path_text(self._plan.root)}: there is too little room to save State")
        try:
            key, body = await pack(self._draft / "state.sqlite", position, self._runtime)
        finally:
            release_file(tables)
        for store in stores.values():
            await store.put(key.key, body)
        beginning = replace(describe(tables, position, first), key=key.key, size=len(body))
        await journal.point(position, encode_beginning(beginning))

    async def _set_aside(self, store: ChunkStore, position: Position) -> None:
        """What a replica has of entries behind `position` must not be taken for those that come there now."""
        late = [info.key async for info in store.list(MIRROR_PREFIX) if _ends_behind(info.key, position)]
        for key in late:
            await store.put(f"{SET_ASIDE}{self._incarnation}/{key}", await store.get(key))
            await store.delete(key)
        for checkpoint in await list_checkpoints(store):
            # The one that was just put is of the position behind.
            if checkpoint.position > position + 1:
                await store.delete(checkpoint.key)


def _ends_behind(key: str, position: Position) -> bool:
    span = parse_mirror_key(key)
    return span is not None and span[1] > position


def replica_texts(outcome: Outcome, base: Path) -> list[str]:
    """A line for each replica that the workspace has now."""
    return [f"replica {place.id}: {place_text(place.url, base)}" for place in outcome.replicas]
