"""workspace.toml: what is written is read again, and what is not ours is refused."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from agentfs.cli.layout import WorkspaceDirectory
from agentfs.cli.workspace_file import ReplicaPlace, WorkspaceFile, parse_workspace_file, read_workspace_file
from agentfs.model.errors import Invalid, NotFound
from agentfs.model.ids import ReplicaId

FILE = WorkspaceFile(
    format=3,
    workspace="6f3d0a4e-8f3c-4f0e-9d5b-0a3f0a4e8f3c",
    name="demo",
    journal="journal.sqlite",
    durability="close",
    replicas=[ReplicaPlace(1, "file:replicas/1"), ReplicaPlace(2, Path('/srv/a "b"\\ü').as_uri())],
)

OF_FORMAT_1 = FILE.as_toml().replace("format = 3", 'format = 1\nreplication = "quorum"')


def test_what_is_written_is_read_again() -> None:
    assert parse_workspace_file(FILE.as_toml(), origin="x") == FILE


def test_a_file_of_format_1_is_read() -> None:
    assert parse_workspace_file(OF_FORMAT_1, origin="x") == replace(FILE, format=1, replication="quorum")


def test_a_file_of_format_2_is_read() -> None:
    assert parse_workspace_file(FILE.as_toml().replace("format = 3", "format = 2"), origin="x") == replace(FILE, format=2)


def test_the_file_says_where_this_host_finds_a_replica() -> None:
    assert FILE.url_of(ReplicaId(1), "s3://bucket/x") == "file:replicas/1"
    assert FILE.url_of(ReplicaId(3), "s3://bucket/x") == "s3://bucket/x"


def test_a_missing_workspace_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/workspace.toml").touch()
    with pytest.raises(NotFound, match=r"agentfs create demo.*other"):
        read_workspace_file(WorkspaceDirectory(tmp_path / "demo"), root=tmp_path)


def test_a_newer_format_says_upgrade_whatever_else_is_in_it() -> None:
    with pytest.raises(Invalid, match=r"format 4.*upgrade"):
        parse_workspace_file('format = 4\nunknown = "field"\n', origin="x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "format = [",
        "format = 1\n",
        OF_FORMAT_1.replace("quorum", "some"),
        FILE.as_toml().replace("close", "never"),
        FILE.as_toml().replace("id = 2", "id = 1"),
        FILE.as_toml().replace("name =", "nom ="),
    ],
)
def test_what_is_no_workspace_file_is_refused_naming_it(text: str) -> None:
    with pytest.raises(Invalid, match="x is not readable"):
        parse_workspace_file(text, origin="x")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "workspace.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(Invalid, match="not readable"):
        read_workspace_file(WorkspaceDirectory(tmp_path), root=tmp_path)
