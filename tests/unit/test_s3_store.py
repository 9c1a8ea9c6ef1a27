"""What a store in S3 does when its server refuses, is gone, is silent, or answers nonsense; and what it asks of it."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import trio

from agentfs.chunks.s3 import Requests, S3Store
from agentfs.model.errors import AgentfsError, Corrupt, Denied, NoSpace, NotFound, Unavailable
from agentfs.runtime import SystemRuntime
from agentfs.s3 import S3Place, parse_s3_url
from tests.regions import MakeRegions, Region
from tests.unit.s3_stand_in import Answer, StandIn, open_stand_in, refusal

BOUND_SECONDS = 60
"""After how long a test that hangs fails. Nothing is expected to take that long."""

KEY = "segments/ab/abcdef.seg"
BODY = b"0123456789" * 100

Ask = Callable[[S3Store], Awaitable[object]]


@pytest.fixture(autouse=True)
async def bound() -> AsyncIterator[None]:
    with trio.fail_after(BOUND_SECONDS):
        yield


@pytest.fixture
def region(regions: MakeRegions) -> Region:
    [region] = regions(1)
    return region


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with open_stand_in() as stand_in:
        yield stand_in


@asynccontextmanager
async def opened(url: str, *, timeout_seconds: float = 20.0) -> AsyncIterator[S3Store]:
    store = S3Store(parse_s3_url(url), runtime=SystemRuntime(), timeout_seconds=timeout_seconds)
    yield store
    await store.aclose()


async def everything(store: S3Store) -> list[object]:
    return [info async for info in store.list("")]


EVERY: dict[str, Ask] = {
    "put": lambda store: store.put(KEY, BODY),
    "get": lambda store: store.get(KEY),
    "range": lambda store: store.get(KEY, 1, 2),
    "nothing": lambda store: store.get(KEY, 0, 0),
    "size": lambda store: store.size(KEY),
    "list": everything,
    "delete": lambda store: store.delete(KEY),
}
every = pytest.mark.parametrize("ask", EVERY.values(), ids=EVERY)
some = pytest.mark.parametrize("ask", [EVERY["get"], EVERY["put"], EVERY["list"]], ids=["get", "put", "list"])


# ---- a real server


@every
async def test_a_wrong_secret_is_named(region: Region, monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    async with opened(region.url()) as store:
        with pytest.raises(Denied, match=r"the secret key is wrong|access denied"):
            await ask(store)


async def test_the_wrong_secret_itself_is_not_shown(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    async with opened(region.url()) as store:
        with pytest.raises(Denied) as caught:
            await store.get(KEY)
    assert "the secret key is wrong" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert region.bucket in str(caught.value)
    assert region.endpoint in str(caught.value)


async def test_an_unknown_access_key_is_named(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKNOBODY")
    async with opened(region.url()) as store:
        with pytest.raises(Denied, match="the access key is not known there"):
            await store.get(KEY)


async def test_no_credentials_at_all(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with opened(region.url()) as store:
        with pytest.raises(Denied, match="no credentials were found: put them in AWS_ACCESS_KEY_ID"):
            await store.get(KEY)


async def test_new_credentials_are_used_once_they_are_there(
    region: Region, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def write(secret: str) -> None:
        key = region.environment["AWS_ACCESS_KEY_ID"]
        credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")

    async with opened(region.url()) as store:
        with pytest.raises(Denied, match="no credentials were found"):
            await store.put(KEY, BODY)
        write("wrong")
        with pytest.raises(Denied, match="the secret key is wrong"):
            await store.put(KEY, BODY)
        write(region.environment["AWS_SECRET_ACCESS_KEY"])
        await store.put(KEY, BODY)


async def test_a_profile_that_is_not_there(region: Region) -> None:
    async with opened(region.url(profile="nobody")) as store:
        with pytest.raises(Denied, match="no profile nobody"):
            await store.get(KEY)


@every
async def test_a_missing_bucket_is_named(region: Region, ask: Ask) -> None:
    url = region.url().replace(region.bucket, "no-such-bucket")
    async with opened(url) as store:
        with pytest.raises(Denied, match="bucket no-such-bucket"):
            await ask(store)


@some
async def test_a_permission_that_is_revoked_and_given_back(region: Region, ask: Ask) -> None:
    async with opened(region.url()) as store:
        await store.put(KEY, BODY)
        region.deny()
        with pytest.raises(Denied, match=r"suspended|access denied"):
            await ask(store)
        region.allow()
        await ask(store)


async def test_a_policy_that_denies_writing_leaves_reading(region: Region) -> None:
    everybody = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{region.bucket}/*"}
    async with opened(region.url("prefix")) as store:
        await store.put(KEY, BODY)
        policy = msgspec.json.encode({"Version": "2012-10-17", "Statement": [everybody]}).decode()
        region.client.put_bucket_policy(Bucket=region.bucket, Policy=policy)
        with pytest.raises(Denied, match=f"s3://{region.bucket}/prefix/{KEY} at .*: access denied"):
            await store.put(KEY, BODY)
        assert await store.get(KEY) == BODY


@some
async def test_a_server_that_is_gone_and_comes_back(region: Region, ask: Ask) -> None:
    async with opened(region.url()) as store:
        await store.put(KEY, BODY)
        region.kill("gateway")
        with pytest.raises(Unavailable, match=f"{region.bucket}.*at {region.endpoint}"):
            await ask(store)
        region.start()
        await ask(store)


@pytest.mark.parametrize("part", ["gateway", "osd"])
@some
async def test_a_frozen_server_is_given_up_in_time(region: Region, part: str, ask: Ask) -> None:
    async with opened(region.url(), timeout_seconds=0.5) as store:
        await store.put(KEY, BODY)
        # The gateway may answer from what it remembers of an object; of one that it has not seen it must ask.
        region.client.put_object(Bucket=region.bucket, Key=KEY, Body=BODY)
        region.freeze(part)
        started = trio.current_time()
        with pytest.raises(Unavailable, match="did not answer in time"):
            await ask(store)
        assert 0.4 < trio.current_time() - started < 5
        region.thaw()
        await ask(store)


async def test_a_cancelled_caller_leaves_a_frozen_server_at_once(region: Region) -> None:
    async with opened(region.url(), timeout_seconds=3) as store:
        await store.put(KEY, BODY)
        region.freeze("gateway")
        started = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await store.get(KEY)
        assert scope.cancelled_caught
        assert trio.current_time() - started < 1.5
        region.thaw()
        assert await store.get(KEY) == BODY


async def test_a_put_that_is_cut_in_the_middle_leaves_nothing(region: Region) -> None:
    url = region.client.generate_presigned_url("put_object", Params={"Bucket": region.bucket, "Key": KEY})
    async with opened(region.url()) as store:
        await trio.to_thread.run_sync(cut_in_the_middle, url)
        with pytest.raises(NotFound):
            await store.get(KEY)
        assert await everything(store) == []
        await store.put(KEY, BODY)
        await trio.to_thread.run_sync(cut_in_the_middle, url)
        assert await store.get(KEY) == BODY


def cut_in_the_middle(url: str) -> None:
    """Send half of an object, and end the connection; return when the server has noticed, because it has closed its side."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=30)
    connection.putrequest("PUT", f"{parts.path}?{parts.query}")
    connection.putheader("Content-Length", str(1 << 20))
    connection.endheaders()
    connection.send(bytes(1 << 19))
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_WR)
    while connection.sock.recv(1 << 16):
        pass
    connection.close()


async def test_wrong_bytes_of_the_right_length_are_corrupt(region: Region) -> None:
    async with opened(region.url("prefix")) as store:
        await store.put(KEY, BODY)
        region.client.put_object(Bucket=region.bucket, Key=f"prefix/{KEY}", Body=BODY[::-1])
        with pytest.raises(Corrupt, match="not what their hash says"):
            await store.get(KEY, check=lambda body: body == BODY)
        await store.put(KEY, BODY)
        assert await store.get(KEY, check=lambda body: body == BODY) == BODY


async def test_a_prefix_keeps_two_stores_apart(region: Region) -> None:
    async with opened(region.url("one")) as one, opened(region.url("one/two")) as two, opened(region.url("on")) as other:
        await one.put("x", b"1")
        await two.put("x", b"22")
        await other.put("e/x", b"333")
        assert [await store.size("x") for store in (one, two)] == [1, 2]
        assert await everything(two) == [("x", 2)]
        assert await everything(one) == [("two/x", 2), ("x", 1)]


async def test_a_listing_of_several_pages(region: Region) -> None:
    keys = [f"{number % 3}/{number:04}" for number in range(1030)]
    async with opened(region.url("prefix")) as store:
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(store.put, key, b"x")
        assert await everything(store) == [(key, 1) for key in sorted(keys)]
        assert store.requests.list == 2


async def test_requests_are_counted(region: Region) -> None:
    async with opened(region.url()) as store:
        await store.put(KEY, BODY)
        await store.get(KEY)
        await store.get(KEY, 10, 5)
        await store.size(KEY)
        await everything(store)
        await store.delete(KEY)
        with pytest.raises(NotFound):
            await store.get(KEY)
        counted = Requests(put=1, get=3, head=1, list=1, delete=1, bytes_in=len(BODY) + 5, bytes_out=len(BODY))
        assert store.requests == counted


# ---- a server that says what a test wants


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (refusal(503, "SlowDown"), Unavailable, "fewer requests"),
        (refusal(500, "InternalError"), Unavailable, "because"),
        (refusal(429, "TooManyRequests"), Unavailable, "fewer requests"),
        (refusal(403, "RequestTimeTooSkewed"), Unavailable, "the clock of this machine"),
        (refusal(400, "IncompleteBody"), Unavailable, "not all of the body arrived"),
        (refusal(403, "QuotaExceeded"), NoSpace, "the quota is used up"),
        (refusal(507, "XMinioStorageFull"), NoSpace, "the store is full"),
        (refusal(507, "SomethingElse"), NoSpace, "the store is full"),
        (refusal(403, "AccountProblem"), Denied, "a problem with the account"),
        (refusal(403, "SomethingElse"), Denied, "access denied"),
        (refusal(400, "SomethingElse", "words of the server"), Denied, "words of the server .SomethingElse"),
        (Answer(502, b"<html>Bad gateway</html>"), Unavailable, "Bad Gateway"),
    ],
    ids=lambda value: f"{value.status}" if isinstance(value, Answer) else "",
)
@some
async def test_what_a_refusal_means(stand_in: StandIn, ask: Ask, answer: Answer, kind: type[AgentfsError], reason: str) -> None:
    stand_in.answer = answer
    async with opened(f"s3://bucket/p?endpoint={stand_in.endpoint}") as store:
        with pytest.raises(kind, match=reason):
            await ask(store)
    assert len(stand_in.requests) == 1, "nothing is tried twice here"


async def test_a_bucket_in_another_region_is_named(stand_in: StandIn) -> None:
    stand_in.answer = refusal(301, "PermanentRedirect", x_amz_bucket_region="eu-west-3")
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        with pytest.raises(Denied, match="name it in the URL: region=eu-west-3"):
            await store.get(KEY)


@pytest.mark.parametrize(("status", "kind"), [(403, Denied), (500, Unavailable), (503, Unavailable), (507, NoSpace)])
async def test_what_a_refusal_without_a_body_means(stand_in: StandIn, status: int, kind: type[AgentfsError]) -> None:
    stand_in.answer = Answer(status)
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        with pytest.raises(kind):
            await store.size(KEY)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None), ("soon", None), (None, None)]
)
async def test_how_long_a_server_asks_to_be_left_alone(stand_in: StandIn, header: str | None, seconds: float | None) -> None:
    stand_in.answer = refusal(503, "SlowDown", **({} if header is None else {"Retry_After": header}))
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        with pytest.raises(Unavailable) as caught:
            await store.put(KEY, BODY)
    assert caught.value.retry_after_seconds == seconds


async def test_an_answer_that_breaks_off_may_be_asked_for_again(stand_in: StandIn) -> None:
    stand_in.answer = Answer(200, BODY, length=2 * len(BODY))
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        with pytest.raises(Unavailable):
            await store.get(KEY)
        with pytest.raises(Unavailable):
            await store.get(KEY, 0, len(BODY))


async def test_a_server_that_knows_no_ranges_gives_the_right_bytes(stand_in: StandIn) -> None:
    stand_in.answer = Answer(200, BODY)
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        assert await store.get(KEY, 3, 4) == b"3456"
        with pytest.raises(Corrupt):
            await store.get(KEY, len(BODY) - 1, 2)


async def test_a_range_that_comes_short_is_corrupt(stand_in: StandIn) -> None:
    stand_in.answer = Answer(206, b"34", {"Content-Range": "bytes 3-4/5"})
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        with pytest.raises(Corrupt):
            await store.get(KEY, 3, 4)


async def test_a_page_that_is_not_s3_is_not_an_empty_listing(stand_in: StandIn) -> None:
    stand_in.answer = Answer(200, b"<html>Please log in</html")
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        with pytest.raises(Unavailable):
            await everything(store)


async def test_a_put_says_what_the_url_says(stand_in: StandIn) -> None:
    place = S3Place(
        "bucket", endpoint=stand_in.endpoint, region="eu-west-9", storage_class="STANDARD_IA", sse="aws:kms", sse_kms_key_id="k"
    )
    async with opened(place.url) as store:
        await store.put(KEY, BODY)
    [put] = stand_in.requests
    assert (put.verb, put.path) == ("PUT", f"/bucket/{KEY}")
    assert put.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert put.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert put.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "k"
    assert "/eu-west-9/s3/" in put.headers["Authorization"]


@pytest.mark.parametrize(("size", "waits"), [(0, False), (1 << 10, False), (1 << 20, True)])
async def test_only_a_large_body_waits_for_leave(stand_in: StandIn, size: int, waits: bool) -> None:
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        await store.put(KEY, bytes(size))
    assert (stand_in.requests[0].headers.get("Expect") == "100-continue") is waits


async def test_the_server_is_told_the_hash_of_the_body(stand_in: StandIn) -> None:
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        await store.put(KEY, BODY)
    assert stand_in.requests[0].headers["X-Amz-Content-SHA256"] == sha256(BODY).hexdigest()


async def test_a_connection_is_used_again(stand_in: StandIn) -> None:
    stand_in.answer = Answer(200, BODY)
    async with opened(f"s3://bucket?endpoint={stand_in.endpoint}") as store:
        for _ in range(5):
            await store.get(KEY)
    assert len({request.port for request in stand_in.requests}) == 1
