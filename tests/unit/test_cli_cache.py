"""`agentfs cache`: what it says of the edge cache on this host, and what it removes."""

import json
import os
from pathlib import Path
from random import Random

import pytest

from agentfs.chunks.edge_bound import look
from agentfs.chunks.edge_files import EDGE_DIRECTORY, EdgeFiles, Piece
from agentfs.cli.failures import DAMAGED
from agentfs.cli.main import main
from agentfs.model.extents import digest_of

NOW_NS = 1_700_000_000 * 10**9


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def files(root: Path) -> EdgeFiles:
    """A cache of four segments of 10,000 bytes and a part, used a minute after each other."""
    files = EdgeFiles(root / EDGE_DIRECTORY)
    for number in range(4):
        keep(files, number)
    body = Random(4).randbytes(10_000)
    files.write(Piece(digest_of(body), 0, 100), body[:100], "token")
    for number, file in enumerate(paths(files)):
        used_ns = NOW_NS + number * 60 * 10**9
        os.utime(file, ns=(used_ns, used_ns))
    return files


def keep(files: EdgeFiles, number: int) -> Path:
    body = Random(number).randbytes(10_000)
    before = set(paths(files))
    files.write(Piece(digest_of(body)), body, "token")
    [path] = set(paths(files)) - before
    return path


def paths(files: EdgeFiles) -> list[Path]:
    return sorted(Path(kept.path) for shard in files.scan() for kept in shard)


def records(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_status_says_how_much_is_kept(root: Path, files: EdgeFiles, capsys: pytest.CaptureFixture[str]) -> None:
    look(files, 100 << 20, 0, NOW_NS)
    assert main(["cache", "status", "--cache-dir", str(root)]) == 0
    out = capsys.readouterr().out
    assert str(root / "chunks") in out
    assert "52.0 KiB of 100.0 MiB, in 5 files" in out
    assert "2023-11-1" in out


@pytest.mark.parametrize("arguments", [[], ["status"]])
def test_status_is_what_is_meant_without_a_command(
    root: Path, files: EdgeFiles, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["cache", *arguments, "--json", "--cache-dir", str(root)]) == 0
    assert records(capsys.readouterr().out) == [
        {
            "directory": str(root / "chunks"),
            "files": 5,
            "used_bytes": 13 * 4096,
            "max_bytes": None,
            "least_recently_used_ns": NOW_NS,
            "most_recently_used_ns": NOW_NS + 240 * 10**9,
        }
    ]


@pytest.mark.parametrize("command", ["status", "clear", "verify"])
def test_a_cache_that_is_not_there_is_empty(root: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main(["cache", command, "--cache-dir", str(root)]) == 0
    assert "0 files" in capsys.readouterr().out
    assert not root.exists()


def test_the_cache_directory_may_come_from_the_environment(
    root: Path, files: EdgeFiles, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFS_CACHE_DIR", str(root))
    assert main(["cache"]) == 0
    assert "in 5 files" in capsys.readouterr().out


def test_clear_removes_what_is_ours_and_says_how_much(root: Path, files: EdgeFiles, capsys: pytest.CaptureFixture[str]) -> None:
    shard = paths(files)[0].parent
    (shard / ".tmp-old").write_bytes(b"half")
    os.utime(shard / ".tmp-old", ns=(NOW_NS, NOW_NS))
    (shard / ".tmp-new").write_bytes(b"half")
    (shard / "notes.txt").write_bytes(b"mine")
    (root / "other").mkdir()
    assert main(["cache", "clear", "--cache-dir", str(root)]) == 0
    assert capsys.readouterr().out == "freed 56.0 KiB in 6 files\n"
    assert sorted(path.name for path in root.rglob("*")) == sorted([".tmp-new", "chunks", "notes.txt", "other", shard.name])


def test_clear_tells_scripts(root: Path, files: EdgeFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "clear", "--json", "--cache-dir", str(root)]) == 0
    [record] = records(capsys.readouterr().out)
    assert (record["event"], record["files"], record["freed_bytes"]) == ("cleared", 5, 13 * 4096)


def test_verify_of_a_sound_cache(root: Path, files: EdgeFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "verify", "--cache-dir", str(root)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "5 files read (39.2 KiB): all are right\n"
    assert "verify: " in captured.err
    assert len(paths(files)) == 5


def test_verify_removes_what_is_wrong_and_names_it(root: Path, files: EdgeFiles, capsys: pytest.CaptureFixture[str]) -> None:
    damaged, shortened, *sound = paths(files)
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    os.truncate(shortened, 50)
    assert main(["cache", "verify", "--cache-dir", str(root)]) == DAMAGED
    out = capsys.readouterr().out
    assert str(damaged) in out
    assert str(shortened) in out
    assert "2 wrong" in out
    assert paths(files) == sound
    assert main(["cache", "verify", "--cache-dir", str(root)]) == 0


def test_verify_leaves_alone_what_it_cannot_judge(root: Path, files: EdgeFiles, capsys: pytest.CaptureFixture[str]) -> None:
    newer = paths(files)[0].with_name(f"{'ab' * 32}.seg2")
    newer.write_bytes(b"from a newer version")
    assert main(["cache", "verify", "--cache-dir", str(root)]) == 0
    assert newer.exists()


def test_verify_tells_scripts(root: Path, files: EdgeFiles, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = paths(files)[0]
    damaged.write_bytes(b"")
    assert main(["cache", "verify", "--json", "--cache-dir", str(root)]) == DAMAGED
    told = records(capsys.readouterr().out)
    assert told[-2:] == [
        {"event": "wrong", "path": str(damaged)},
        {"event": "verified", "files": 5, "bytes": told[-1]["bytes"], "wrong": 1},
    ]
    assert {record["event"] for record in told[:-2]} == {"verify"}
