"""What `agentfs status` says of replicas and caches."""

from msgspec.structs import replace

from agentfs.cli.status import _facts
from agentfs.workspace.status import CacheStatus, EdgeCacheStatus, ReplicaStatus, RequestCounts, WorkspaceStatus

UP = ReplicaStatus(
    replica=1,
    url="s3://bucket/a",
    state="up",
    latency_seconds=0.0123,
    down_seconds=None,
    missing_segments=0,
    missing_bytes=0,
    lag_seconds=None,
    outstanding=0,
    last_error="",
    requests=None,
)
COUNTS = RequestCounts(put=2, get=3, head=0, list=1, delete=0, bytes_in=2048, bytes_out=1024)
STATUS = WorkspaceStatus(
    name="demo",
    workspace="uuid",
    durability="close",
    replication="quorum",
    write_quorum=2,
    reachable=True,
    position=7,
    pending_transactions=0,
    dirty_bytes=0,
    dirty_files=0,
    oldest_unsaved_seconds=0.0,
    files=3,
    stored_bytes=4,
    inline_bytes=4,
    lease_ttl_seconds=10.0,
    leases=0,
    sessions=[],
    replicas=[UP],
    cache=CacheStatus(memory_bytes=1, memory_max_bytes=2, staging_bytes=3),
    recovered=[],
)


def lines(status: WorkspaceStatus) -> list[str]:
    return [f"{name}: {text}" for name, text in _facts(status)]


def of_replica(replica: ReplicaStatus) -> list[str]:
    return lines(replace(STATUS, replicas=[replica]))[len(lines(replace(STATUS, replicas=[]))) :]


def test_a_replica_that_does_well_takes_one_line() -> None:
    assert of_replica(UP) == ["replica 1: up (12.3 ms), s3://bucket/a"]


def test_a_replica_whose_mirror_lags_says_by_how_much() -> None:
    behind = replace(UP, mirrored=120, mirror_lag=7, mirror_lag_seconds=61.0)
    assert of_replica(behind)[1:] == [": its mirror lacks 7 of the journal's entries, 1 min 1 s behind"]
    assert of_replica(replace(behind, mirror_lag_seconds=None))[1:] == [": its mirror lacks 7 of the journal's entries"]
    assert len(of_replica(replace(behind, mirrored=127, mirror_lag=0, mirror_lag_seconds=0.0))) == 1


def test_a_replica_that_is_down_says_since_when_and_why_and_what_it_lacks() -> None:
    down = replace(
        UP, state="down", down_seconds=125.0, last_error="no route", missing_segments=3, missing_bytes=4096, lag_seconds=61.0
    )
    assert of_replica(down) == [
        "replica 1: down (12.3 ms), s3://bucket/a",
        ": lacks 3 segments, 4.0 KiB, 1 min 1 s behind",
        ": unreachable for 2 min 5 s: no route",
    ]


def test_a_replica_that_failed_once_says_so() -> None:
    assert of_replica(replace(UP, last_error="slow down"))[1:] == [": last error: slow down"]


def test_requests_are_counted_by_verb() -> None:
    assert of_replica(replace(UP, requests=COUNTS))[1:] == [": 2 PUT, 3 GET, 1 LIST; 2.0 KiB read, 1.0 KiB written"]


def test_replicas_of_an_offline_mount_are_said_not_to_be_asked() -> None:
    assert of_replica(replace(UP, state="unasked", latency_seconds=None)) == [
        "replica 1: not asked, the mount is offline, s3://bucket/a"
    ]


def test_the_settings_and_whether_writes_get_through() -> None:
    shown = lines(STATUS)
    assert "settings: durability close, replication quorum of 2" in shown
    assert "unsaved: 0 transactions, 0 B in 0 files" in shown
    cut = lines(replace(STATUS, reachable=False))
    assert "unsaved: 0 transactions, 0 B in 0 files, too few replicas can be reached" in cut


def test_a_disk_cache_has_a_line() -> None:
    edge = EdgeCacheStatus(
        directory="/c",
        hits=5,
        misses=2,
        hit_bytes=10,
        fetched_bytes=2048,
        used_bytes=1 << 20,
        max_bytes=1 << 30,
        trouble="the disk is full",
    )
    text = "disk cache: 1.0 MiB of 1.0 GiB, 5 hits, 2 misses, 2.0 KiB fetched, the disk is full"
    assert text in lines(replace(STATUS, cache=replace(STATUS.cache, edge=edge)))
    assert not any(line.startswith("disk cache") for line in lines(STATUS))
