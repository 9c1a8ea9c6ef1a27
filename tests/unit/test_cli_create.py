"""A workspace is made entirely or not at all, and what was there before is there again."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from agentfs.cli.creation import NewWorkspace, create_workspace
from agentfs.cli.journal_place import JournalPlace, journal_place
from agentfs.cli.layout import WorkspaceDirectory
from agentfs.cli.replica_place import directory_of, open_place, replica_url
from agentfs.cli.workspace_file import read_workspace_file
from agentfs.model.changes import Found
from agentfs.model.codec import decode_entry
from agentfs.model.errors import Exists, Invalid, NoSpace, NotDirectory
from agentfs.runtime import SystemRuntime


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


def new(tmp_path: Path, *replicas: Path | str) -> NewWorkspace:
    return NewWorkspace(
        name="demo",
        root=tmp_path / "data/agentfs",
        workspace="6f3d0a4e-8f3c-4f0e-9d5b-0a3f0a4e8f3c",
        replicas=tuple(replica_url(str(each)) for each in replicas),
        replication="sync",
        durability="close",
        time_ns=1_700_000_000_000_000_000,
        uid=1000,
        gid=100,
    )


class InMemory:
    """Journals of which only the first entry is of interest; that one can fail to be appended, or a taken place be found."""

    def __init__(self, *, fails: bool = False, taken: bool = False) -> None:
        self.fails = fails
        self.taken = taken
        self.entries: dict[str, bytes | None] = {}

    async def check_free(self, place: JournalPlace) -> None:
        if self.taken:
            raise Exists(f"there is a workspace in {place.text} already")

    async def create(self, place: JournalPlace) -> None:
        self.entries[place.text] = None

    async def begin(self, place: JournalPlace, payload: bytes) -> None:
        if self.fails:
            raise NoSpace("full")
        self.entries[place.text] = payload

    async def remove(self, place: JournalPlace) -> None:
        del self.entries[place.text]


def create(wanted: NewWorkspace, journals: InMemory | None = None) -> WorkspaceDirectory:
    opening = partial(open_place, runtime=SystemRuntime())
    return trio.run(partial(create_workspace, wanted, journals=journals or InMemory(), open_place=opening))


def test_the_embedded_default(tmp_path: Path) -> None:
    directory = create(new(tmp_path))
    file = read_workspace_file(directory, root=tmp_path)
    assert (file.name, file.durability) == ("demo", "close")
    places = [directory_of(place.url, directory.path) for place in file.replicas]
    assert places == [directory.path / "replicas/1", directory.path / "replicas/2"]
    markers = [directory.path / f"replicas/{number}/agentfs-replica.json" for number in (1, 2)]
    assert [msgspec.json.decode(marker.read_bytes())["replica"] for marker in markers] == [1, 2]
    assert os.listdir(directory.path.parent) == ["demo"]


def test_the_journal_begins_with_what_was_founded(tmp_path: Path) -> None:
    journals = InMemory()
    create(replace(new(tmp_path), history_seconds=60), journals)
    [payload] = journals.entries.values()
    assert payload is not None
    entry = decode_entry(payload)
    assert (entry.session, [transaction.number for transaction in entry.transactions]) == (0, [1])
    found = entry.transactions[0].changes[0]
    assert isinstance(found, Found)
    assert (found.name, found.uid, found.gid, [spec.replica for spec in found.replicas]) == ("demo", 1000, 100, [1, 2])
    assert found.history_seconds == 60


def test_a_moved_workspace_finds_its_replicas(tmp_path: Path) -> None:
    directory = create(new(tmp_path))
    directory.path.rename(tmp_path / "moved")
    moved = WorkspaceDirectory(tmp_path / "moved")
    places = [directory_of(place.url, moved.path) for place in read_workspace_file(moved, root=tmp_path).replicas]
    assert all(place is not None and place.is_dir() for place in places)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        create(new(tmp_path), InMemory(fails=True))
    assert tree(tmp_path) == {}


def test_a_failure_puts_replica_directories_back(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "disk/lost+found").mkdir(parents=True)
    before = tree(tmp_path)
    wanted = new(tmp_path, tmp_path / "empty", tmp_path / "disk", tmp_path / "absent/deep")
    with pytest.raises(NoSpace):
        create(wanted, InMemory(fails=True))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("broken", ["mkdir", "rename", "open"])
def test_whatever_call_fails_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Fails the first, second, … call of its kind, until creation gets through."""
    (tmp_path / "one").mkdir()
    before = tree(tmp_path)
    wanted = new(tmp_path, tmp_path / "one", tmp_path / "two/deep")
    original = getattr(Path, broken)
    for allowed in range(20):
        calls = 0

        def limited(self: Path, *args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls > allowed:  # noqa: B023
                raise OSError(28, "No space left on device", str(self))
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(Path, broken, limited)
            try:
                create(wanted)
            except (OSError, NoSpace):
                pass
            else:
                assert allowed > 0
                return
        assert tree(tmp_path) == before
    pytest.fail("creation never got through")


def test_a_taken_name_is_refused_and_kept(tmp_path: Path) -> None:
    create(new(tmp_path))
    before = tree(tmp_path)
    with pytest.raises(Exists, match="agentfs mount demo"):
        create(replace(new(tmp_path), workspace="other"))
    assert tree(tmp_path) == before


def test_the_replica_of_another_workspace_is_refused_naming_it(tmp_path: Path) -> None:
    create(new(tmp_path, tmp_path / "disk"))
    before = tree(tmp_path)
    with pytest.raises(Exists, match="replica 1 of workspace demo"):
        create(replace(new(tmp_path, tmp_path / "fresh", tmp_path / "disk"), name="two", workspace="other"))
    assert tree(tmp_path) == before


def test_a_directory_with_files_is_no_replica(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/photo").write_bytes(b"x")
    with pytest.raises(Exists, match="not empty"):
        create(new(tmp_path, tmp_path / "disk"))
    assert tree(tmp_path) == {"disk": None, "disk/photo": b"x"}


def test_a_file_is_no_replica(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises((NotDirectory, OSError)):
            create(new(tmp_path, path))
    assert tree(tmp_path) == {"file": b"x"}


def test_replicas_inside_one_another_are_refused(tmp_path: Path) -> None:
    for pair in ((tmp_path / "a", tmp_path / "a"), (tmp_path / "a", tmp_path / "a/b")):
        with pytest.raises(Invalid, match="overlap"):
            create(new(tmp_path, *pair))
    assert tree(tmp_path) == {}


def test_a_bad_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        create(replace(new(tmp_path), name="../x"))
    assert tree(tmp_path) == {}


def shared(tmp_path: Path, url: str, *replicas: Path | str) -> NewWorkspace:
    return replace(new(tmp_path, *replicas), journal=journal_place(url, workspace="demo"))


POSTGRES = "postgresql://postgres@127.0.0.1:1/db"


def test_a_journal_that_hosts_share_is_named_in_the_file(tmp_path: Path) -> None:
    journals = InMemory()
    directory = create(shared(tmp_path, POSTGRES, tmp_path / "disk"), journals)
    assert read_workspace_file(directory, root=tmp_path).journal == f"{POSTGRES}?workspace=demo"
    assert list(journals.entries) == ["postgresql://127.0.0.1:1/db?workspace=demo"]
    assert [path.name for path in directory.path.iterdir()] == ["workspace.toml"]


@pytest.mark.parametrize("step", ["first entry", "write_durably", "put_in_place"])
def test_a_journal_that_hosts_share_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise NoSpace("full")

    if step != "first entry":
        monkeypatch.setattr(f"agentfs.cli.creation.{step}", fail)
    journals = InMemory(fails=step == "first entry")
    with pytest.raises(NoSpace):
        create(shared(tmp_path, POSTGRES, tmp_path / "disk"), journals)
    assert (journals.entries, tree(tmp_path)) == ({}, {})


def test_a_journal_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(Exists, match="already"):
        create(shared(tmp_path, POSTGRES, tmp_path / "disk"), InMemory(taken=True))
    assert tree(tmp_path) == {}


def test_with_a_journal_in_s3_the_replica_is_in_the_same_place(tmp_path: Path) -> None:
    url = "s3://bucket/agents/demo?endpoint=http://127.0.0.1:1"
    assert [place.url for place in shared(tmp_path, url).places()] == [url]
    assert [place.url for place in shared(tmp_path, url, "s3://other/x").places()] == ["s3://other/x"]


def test_a_journal_in_a_database_needs_replicas_that_all_hosts_reach(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"--replica s3://"):
        create(shared(tmp_path, POSTGRES))
    with pytest.raises(Invalid, match="other hosts do not have"):
        create(shared(tmp_path, POSTGRES, "file:replicas/1"))
    assert tree(tmp_path) == {}
