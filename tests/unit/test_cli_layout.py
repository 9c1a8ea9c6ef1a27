"""Names, places and the runtime directory."""

import os
from pathlib import Path

import pytest

from agentfs.cli.layout import (
    cache_root,
    check_name,
    data_root,
    log_path,
    private_runtime_directories,
    runtime_directory,
    workspace_directory,
    workspaces_in,
)
from agentfs.model.errors import Denied, Invalid


@pytest.mark.parametrize("name", ["demo", "a", "A-1_b.c", "0", "x" * 64])
def test_names_that_are_fine(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-f", "a b", "a/b", "x" * 65, "é", "demo\n"])
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(Invalid, match="workspace name"):
        check_name(name)


def test_option_beats_environment_beats_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AGENTFS_ROOT", raising=False)
    monkeypatch.delenv("AGENTFS_CACHE_DIR", raising=False)
    assert (data_root(None), cache_root(None)) == (tmp_path / "data/agentfs", tmp_path / "cache/agentfs")
    monkeypatch.setenv("AGENTFS_ROOT", "/elsewhere")
    monkeypatch.setenv("AGENTFS_CACHE_DIR", "/fast")
    assert (data_root(None), cache_root(None)) == (Path("/elsewhere"), Path("/fast"))
    assert (data_root(Path("/option")), cache_root(Path("/option"))) == (Path("/option"), Path("/option"))


def test_a_name_is_below_the_root_and_a_path_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert workspace_directory("demo", Path("/root-of-all")).path == Path("/root-of-all/demo")
    assert workspace_directory("./demo", Path("/root-of-all")).path == tmp_path / "demo"
    assert workspace_directory(".", Path("/root-of-all")).path == tmp_path


def test_only_finished_workspaces_are_listed(tmp_path: Path) -> None:
    for name in ("b", "a", ".c.x.creating", "no"):
        (tmp_path / name).mkdir()
    for name in ("b", "a", ".c.x.creating"):
        (tmp_path / name / "workspace.toml").touch()
    assert workspaces_in(tmp_path) == ["a", "b"]
    assert workspaces_in(tmp_path / "missing") == []


def test_logs_of_two_mounts_are_two_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert log_path("demo", Path("/mnt/a b")) == tmp_path / "agentfs/log/demo-mnt-a-b.log"
    assert log_path("demo", Path("/mnt/c")) != log_path("demo", Path("/mnt/d"))


def test_the_runtime_directory_is_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    directory = runtime_directory()
    assert directory == tmp_path / "agentfs"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert private_runtime_directories(os.geteuid())[0] == directory


def test_a_runtime_directory_that_others_can_enter_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "agentfs").mkdir()
    (tmp_path / "agentfs").chmod(0o755)
    with pytest.raises(Denied, match="chmod 700"):
        runtime_directory()
    assert tmp_path / "agentfs" not in private_runtime_directories(os.geteuid())


def test_a_runtime_directory_that_is_a_link_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "agentfs").symlink_to(tmp_path / "mine")
    with pytest.raises(Denied):
        runtime_directory()
