"""workspace.toml: what is written is read again, and what is not ours is refused."""

from pathlib import Path

import pytest

from agentfs.cli.layout import WorkspaceDirectory
from agentfs.cli.workspace_file import ReplicaPlace, WorkspaceFile, parse_workspace_file, read_workspace_file
from agentfs.model.errors import Invalid, NotFound

FILE = WorkspaceFile(
    format=1,
    workspace="6f3d0a4e-8f3c-4f0e-9d5b-0a3f0a4e8f3c",
    name="demo",
    journal="journal.sqlite",
    replication="quorum",
    durability="close",
    replicas=[ReplicaPlace(1, "file:replicas/1"), ReplicaPlace(2, Path('/srv/a "b"\\ü').as_uri())],
)


def test_what_is_written_is_read_again() -> None:
    assert parse_workspace_file(FILE.as_toml(), origin="x") == FILE


def test_replica_urls_name_directories() -> None:
    assert [place.directory(Path("/base")) for place in FILE.replicas] == [Path("/base/replicas/1"), Path('/srv/a "b"\\ü')]


def test_a_replica_elsewhere_than_in_a_directory_is_refused() -> None:
    with pytest.raises(Invalid, match="s3://bucket"):
        ReplicaPlace(1, "s3://bucket/x").directory(Path("/base"))


def test_a_missing_workspace_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/workspace.toml").touch()
    with pytest.raises(NotFound, match=r"agentfs create demo.*other"):
        read_workspace_file(WorkspaceDirectory(tmp_path / "demo"), root=tmp_path)


def test_a_newer_format_says_upgrade_whatever_else_is_in_it() -> None:
    with pytest.raises(Invalid, match=r"format 2.*upgrade"):
        parse_workspace_file('format = 2\nunknown = "field"\n', origin="x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "format = [",
        "format = 1\n",
        FILE.as_toml().replace("quorum", "some"),
        FILE.as_toml().replace("id = 2", "id = 1"),
        FILE.as_toml().partition("[[")[0] + "replicas = []\n",
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
