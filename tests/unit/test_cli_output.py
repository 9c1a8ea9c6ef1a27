"""What people and scripts get to see: amounts, tables, progress, records, logs."""

import json
import logging
from pathlib import Path

import pytest
import structlog

from agentfs.cli.amounts import bytes_text, columns, parse_bytes, parse_span, path_text, seconds_text
from agentfs.cli.daemon import last_line
from agentfs.cli.logs import RotatingLog, open_log
from agentfs.cli.mount_options import parse_options
from agentfs.cli.mount_plan import MountPlan, plan_mount
from agentfs.cli.mountinfo import Mounted
from agentfs.cli.preflight import allows_other, check_fuse_device, check_mountpoint
from agentfs.cli.progress import progress
from agentfs.cli.records import MountRecord, control_socket, find_record, remove_record, write_record
from agentfs.cli.workspace_file import ReplicaPlace, WorkspaceFile
from agentfs.model.errors import Invalid, NotDirectory, NotEmpty, NotFound
from agentfs.runtime import SystemRuntime


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_500_000, "1.4 MiB"), (5 << 30, "5.0 GiB"), (1 << 60, "1024.0 PiB")],
)
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("1024", 1024), ("10G", 10 << 30), ("1.5m", 3 << 19), ("2GiB", 2 << 30)])
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "10X", "1,5G", "ten"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="10G"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("12h", 43200), ("30d", 2592000), (" 2W ", 1209600), ("forever", 0), ("0", 0)],
)
def test_spans_are_read(text: str, seconds: int) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "30", "-1d", "1.5d", "0d", "1y", "1 d", "9999999999s"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="30d"):
        parse_span(text)


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "0.2 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (90000, "1 d 1 h")])
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_columns_are_aligned() -> None:
    assert columns([("a", "bbb"), ("aaa", "b")]) == ["a    bbb", "aaa  b"]
    assert columns([]) == []


def test_paths_that_are_no_text_can_be_shown() -> None:
    assert path_text(Path("/a\udce9")) == "/a\\xe9"


def test_piped_progress_is_a_line_for_every_tenth(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("saving", unit="bytes", as_json=False) as shown:
        for done in range(0, 4097, 4):
            shown.advance(done, 4096)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "saving: 4.0 KiB of 4.0 KiB"


def test_json_progress_is_records(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("checking", unit="items", as_json=True) as shown:
        shown.advance(1, 2, "a")
    record = json.loads(capfd.readouterr().out)
    assert record == {"event": "checking", "unit": "items", "done": 1, "total": 2, "note": "a"}


def test_a_record_is_found_by_its_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    mountpoint = Path("/mnt/caf\udce9")
    mounted = Mounted(mountpoint, "fuse.agentfs", "demo", "rw", tmp_path.stat().st_uid)
    record = MountRecord(
        workspace="demo",
        source="/data/demo",
        journal="/data/demo/journal.sqlite",
        mountpoint=path_text(mountpoint),
        pid=1,
        label="",
        log="",
        control=str(control_socket(mountpoint)),
        since_ns=2,
    )
    assert find_record(mounted) is None
    write_record(record, mountpoint)
    assert find_record(mounted) == record
    remove_record(mountpoint, owner=tmp_path.stat().st_uid)
    assert find_record(mounted) is None
    assert list((tmp_path / "agentfs").iterdir()) == []


def test_a_socket_path_that_the_kernel_could_not_take_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(Invalid, match="XDG_RUNTIME_DIR"):
        control_socket(Path("/mnt"))


def test_the_log_is_json_lines_and_is_rotated_by_size(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "log" / "x.log", size_max=100)
    for number in range(30):
        log.write(f"line {number:4}\n")
    log.close()
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"x.log", "x.log.1"}
    assert all(path.stat().st_size <= 110 for path in (tmp_path / "log").iterdir())
    assert last_line(tmp_path / "log/x.log") == "line   29"


def test_what_is_logged_is_structured(tmp_path: Path) -> None:
    log = open_log(tmp_path / "x.log", runtime=SystemRuntime(), take_over=False)
    assert log is not None
    try:
        structlog.get_logger().warning("slow replica", replica=2)
        structlog.get_logger().debug("left out")
    finally:
        log.close()
        structlog.reset_defaults()
        logging.basicConfig(handlers=[], force=True)
    record = json.loads((tmp_path / "x.log").read_text())
    assert record["time"].endswith("Z")
    del record["time"]
    assert record == {"event": "slow replica", "replica": 2, "level": "warning"}


def plan(tmp_path: Path, options: str) -> MountPlan:
    file = WorkspaceFile(
        format=2,
        workspace="uuid",
        name="demo",
        journal="journal.sqlite",
        durability="close",
        replicas=[ReplicaPlace(1, "file:replicas/1")],
    )
    (tmp_path / "demo").mkdir(exist_ok=True)
    (tmp_path / "demo/workspace.toml").write_text(file.as_toml())
    return plan_mount(str(tmp_path / "demo"), tmp_path / "mnt", parse_options([options]), log_file=str(tmp_path / "log"))


def test_the_daemon_is_given_the_same_plan(tmp_path: Path) -> None:
    arguments = plan(
        tmp_path, f"ro,allow_other,uid=1,umask=027,nodev,label=a,durability=fsync,lease_ttl=2.5,strict,cache_dir={tmp_path}"
    ).arguments()
    given = dict(zip(arguments[:-3:2], arguments[1:-3:2], strict=True))
    assert arguments[-3:] == ["--", str(tmp_path / "demo"), str(tmp_path / "mnt")]
    assert parse_options([given["-o"]]) == parse_options(["ro,allow_other,uid=1,umask=027,nodev,strict"])
    assert (given["--durability"], given["--label"], given["--cache-dir"]) == ("fsync", "a", str(tmp_path))
    assert (given["--lease-ttl"], given["--staleness"]) == ("2.5", "0.0")
    assert given["--log-file"] == str(tmp_path / "log")


def test_the_daemon_is_given_what_was_said_of_replicas_and_cache(tmp_path: Path) -> None:
    wanted = plan(tmp_path, "timeout=5,unreachable=erofs,offline,nohedge,cache_size=1G")
    arguments = wanted.arguments()
    given = dict(zip(arguments[:-3:2], arguments[1:-3:2], strict=True))
    assert parse_options([given["-o"]]) == parse_options(["unreachable=erofs,offline,nohedge"])
    assert (given["--timeout"], given["--cache-size"]) == ("5.0", str(1 << 30))
    assert wanted.source.file is not None
    settings = wanted.settings(wanted.source.file)
    assert (settings.put_timeout_seconds, settings.unreachable, settings.edge_max_bytes) == (5.0, "erofs", 1 << 30)
    assert (settings.offline, settings.read_only, settings.hedging) == (True, True, False)


def test_the_workspace_decides_what_the_mount_does_not(tmp_path: Path) -> None:
    for options, durability in (("", "close"), ("durability=fsync", "fsync")):
        wanted = plan(tmp_path, options)
        assert wanted.source.file is not None
        assert wanted.settings(wanted.source.file).durability == durability
    assert "--durability" not in plan(tmp_path, "").arguments()


def test_a_mount_by_url_is_planned_without_asking_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    url = "s3://bucket/agents/demo?endpoint=http://127.0.0.1:1"
    wanted = plan_mount(url, tmp_path / "mnt", parse_options(["label=a"]), log_file=None)
    assert wanted.arguments()[-3:] == ["--", url, str(tmp_path / "mnt")]
    assert wanted.log is not None
    assert wanted.log.name.startswith("demo-")


def test_the_lease_ttl_is_10_seconds_and_nothing_is_stale_by_default(tmp_path: Path) -> None:
    usual, chosen = plan(tmp_path, ""), plan(tmp_path, "lease_ttl=60,staleness=0.5")
    assert (usual.lease_ttl_seconds, usual.staleness_seconds) == (10.0, 0.0)
    assert (chosen.lease_ttl_seconds, chosen.staleness_seconds) == (60.0, 0.5)


def test_a_mountpoint_must_be_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert not check_mountpoint(tmp_path / "empty")
    with pytest.raises(NotFound, match="mkdir"):
        check_mountpoint(tmp_path / "missing")
    with pytest.raises(NotEmpty, match="empty"):
        check_mountpoint(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotDirectory):
        check_mountpoint(tmp_path / "file")
    with pytest.raises(Invalid):
        check_mountpoint(Path("/"))


def test_a_machine_without_fuse_is_told_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="modprobe fuse"):
        check_fuse_device(tmp_path / "fuse")


def test_user_allow_other_counts_on_a_line_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "fuse.conf"
    assert not allows_other(config)
    config.write_text("# user_allow_other\n#user_allow_other\n")
    assert not allows_other(config)
    config.write_text("mount_max = 10\n  user_allow_other  \n")
    assert allows_other(config)
