"""The options of create and mount: the command line wins over a file, the file over the environment, one rule for all."""

from pathlib import Path

import click
import pytest

from agentfs.cli import create, mount
from agentfs.cli.defaults import variable_of, variables
from agentfs.cli.main import main
from agentfs.model.errors import Denied, Invalid, NotFound


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables():
        monkeypatch.delenv(name, raising=False)


def parsed(command: click.Command, *arguments: str) -> dict[str, object]:
    """The values of a command's parameters."""
    return dict(command.make_context("x", list(arguments)).params)


def wrote(tmp_path: Path, text: str) -> str:
    path = tmp_path / "options.toml"
    path.write_text(text)
    return str(path)


def test_a_variable_is_called_as_its_option() -> None:
    assert variable_of("cache-size") == "AGENTFS_CACHE_SIZE"
    wanted = ("JOURNAL", "ROOT", "CACHE_DIR", "CACHE_SIZE", "REPLICA", "REPLICATION", "WRITE_QUORUM", "HISTORY", "DURABILITY")
    wanted += ("LEASE_TTL", "STALENESS", "TIMEOUT", "LABEL", "LOG_FILE", "OPTIONS", "FOREGROUND", "CONFIG")
    assert variables() == {f"AGENTFS_{name}" for name in wanted}


def test_the_environment_says_what_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFS_REPLICA", "/a s3://b/c")
    monkeypatch.setenv("AGENTFS_HISTORY", "2h")
    monkeypatch.setenv("AGENTFS_CACHE_SIZE", "1G")
    made = parsed(create.command, "demo")
    assert (made["replicas"], made["history_seconds"], made["replication"]) == (("/a", "s3://b/c"), 7200, "sync")
    assert parsed(mount.command, "demo", "/mnt")["cache_size_bytes"] == 1 << 30


def test_the_command_line_wins_over_the_file_and_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = wrote(tmp_path, 'label = "file"\nlease-ttl = 20\ncache-size = "2G"\nreplica = ["/a", "/b"]\nforeground = true\n')
    monkeypatch.setenv("AGENTFS_LABEL", "environment")
    monkeypatch.setenv("AGENTFS_LEASE_TTL", "30")
    monkeypatch.setenv("AGENTFS_TIMEOUT", "40")
    monkeypatch.setenv("AGENTFS_REPLICA", "/c")
    found = parsed(mount.command, "--config", file, "--lease-ttl", "10", "demo", "/mnt")
    assert (found["lease_ttl_seconds"], found["label"], found["timeout_seconds"]) == (10.0, "file", 40.0)
    assert (found["cache_size_bytes"], found["foreground"]) == (2 << 30, True)
    assert parsed(create.command, "--config", file, "demo")["replicas"] == ("/a", "/b")
    assert parsed(create.command, "--config", file, "--replica", "/d", "demo")["replicas"] == ("/d",)


def test_a_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFS_CONFIG", wrote(tmp_path, 'label = "file"'))
    assert parsed(mount.command, "demo", "/mnt")["label"] == "file"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('cache_size = "1G"', r"no option 'cache_size': there are cache-dir, cache-size, .*write-quorum"),
        ("json = true", "no option 'json'"),
        ("[mount]\n", "no option 'mount'"),
        ('replica = "/a"', "replica is a list of texts"),
        ("replica = [1]", "replica is a list of texts"),
        ('foreground = "yes"', "foreground is true or false"),
        ("label = true", "label is a text or a number"),
        ("label = [", "not readable"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        parsed(mount.command, "--config", wrote(tmp_path, text), "demo", "/mnt")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.toml"):
        parsed(create.command, "--config", str(tmp_path / "none.toml"), "demo")
    with pytest.raises(Denied, match="cannot be read"):
        parsed(create.command, "--config", str(tmp_path), "demo")


def test_a_wrong_value_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "--config", wrote(tmp_path, 'history = "long"'), "demo", "--root", str(tmp_path)]) == 2
    assert main(["create", "--config", wrote(tmp_path, 'replication = "all"'), "demo", "--root", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "'long' is no span of time" in lines[0]
    assert "'all' is not one of" in lines[1]
