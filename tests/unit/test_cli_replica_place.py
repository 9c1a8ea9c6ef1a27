"""What a replica is called, and what that means."""

import os
from pathlib import Path

import pytest

from agentfs.chunks.directory import DirectoryStore
from agentfs.cli.replica_place import check_apart, directory_of, open_place, place_text, replica_url
from agentfs.model.errors import Invalid
from agentfs.runtime import SystemRuntime

BASE = Path("/work/space")


def test_a_path_becomes_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("real")
    there = os.path.realpath(tmp_path)
    assert replica_url("a b") == f"file://{there}/a%20b"
    assert replica_url("link/x") == f"file://{there}/real/x"
    assert replica_url("s3") == f"file://{there}/s3"


def test_a_url_stays_one() -> None:
    assert replica_url("file:///srv/a%20b") == "file:///srv/a%20b"
    assert replica_url("file:replicas/3") == "file:replicas/3"
    plain = "s3://bucket/a/prefix?endpoint=http://127.0.0.1:9000"
    assert replica_url("s3://bucket/a/prefix/?endpoint=http://127.0.0.1:9000/") == plain


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/x",
        "ftp://user:hush@host/x",
        "s3://key:hush@bucket/x",
        "s3://bucket/x?secret=hush",
        "s3://",
        "file://host/x",
        "file:",
    ],
)
def test_what_is_no_place_is_refused_without_showing_a_secret(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        replica_url(url)
    assert "hush" not in str(caught.value)


def test_a_relative_directory_is_seen_from_the_workspace() -> None:
    assert directory_of("file:replicas/1", BASE) == BASE / "replicas/1"
    assert directory_of("file:///srv/a%20b", BASE) == Path("/srv/a b")
    assert directory_of("s3://bucket/x", BASE) is None
    assert place_text("file:replicas/1", BASE) == "/work/space/replicas/1"
    assert place_text("s3://bucket/x", BASE) == "s3://bucket/x"


def test_a_directory_is_opened_and_its_requests_are_not_counted(tmp_path: Path) -> None:
    place = open_place(tmp_path.as_uri(), BASE, SystemRuntime())
    assert isinstance(place.store, DirectoryStore)
    assert (place.directory, place.requests) == (tmp_path, None)


async def test_a_bucket_is_opened_and_its_requests_are_counted() -> None:
    place = open_place("s3://bucket/x?endpoint=http://127.0.0.1:1", BASE, SystemRuntime())
    assert (place.name, place.directory) == ("s3://bucket/x?endpoint=http://127.0.0.1:1", None)
    assert place.requests is not None
    assert place.requests().get == 0
    await place.store.aclose()


def test_a_place_of_a_later_version_is_refused_by_its_kind() -> None:
    with pytest.raises(Invalid, match="azure:"):
        open_place("azure://account/x", BASE, SystemRuntime())


S3 = "s3://bucket"
AT = "?endpoint=http://127.0.0.1"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("file:replicas/1", "file:replicas/1"),
        ("file:replicas/1", "file:///work/space/replicas"),
        (f"{S3}/a", f"{S3}/a"),
        (f"{S3}/a", f"{S3}/a/b"),
        (f"{S3}/a{AT}:1", f"{S3}{AT}:1"),
        (f"{S3}/a?region=x", f"{S3}/a?region=y"),
    ],
)
def test_places_inside_one_another_are_refused(one: str, other: str) -> None:
    for pair in ([one, other], [other, one]):
        with pytest.raises(Invalid, match="overlap"):
            check_apart(pair, BASE)


def test_places_side_by_side_are_apart() -> None:
    urls = [f"{S3}/a", f"{S3}/ab", "s3://bucket-2/a", f"{S3}/a{AT}:1", f"{S3}/a{AT}:2", "file:a", "file:ab", "file:///bucket/a"]
    check_apart(urls, BASE)
