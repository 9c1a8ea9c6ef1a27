"""A chunk store in a bucket of an S3 server: each object is an object there, its key behind the place's prefix."""

from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from agentfs.chunks.contract import Capacity, Check, ObjectInfo
from agentfs.model.errors import Corrupt, Denied, NotFound
from agentfs.runtime import Runtime
from agentfs.s3 import S3Place, S3Threads, translated

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

TIMEOUT_SECONDS: Final = 20.0
"""How long a server may be silent in the middle of a request."""


@dataclass(slots=True)
class Requests:
    """What a store has asked of its server so far: requests by verb, and bytes of objects.

    Requests count when they are sent, `bytes_out` too; `bytes_in` once an answer has come for somebody who still waits for it.
    """

    put: int = 0
    get: int = 0
    head: int = 0
    list: int = 0
    delete: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class S3Store:
    """Objects under `place`, with at most `threads_max` requests at a time. Nothing is asked of the server before it must be.

    S3 keeps an object once it has answered the PUT, and shows all of it or nothing. Nothing is tried twice: see
    `agentfs.chunks.retrying`. A caller that is cancelled leaves at once; its request goes on for `timeout_seconds` at most
    after the server's last word.
    """

    def __init__(
        self, place: S3Place, *, runtime: Runtime, threads_max: int = 16, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.requests = Requests()
        self._place = place
        self._threads = S3Threads(place, runtime=runtime, threads_max=threads_max, timeout_seconds=timeout_seconds)

    async def put(self, key: str, body: bytes) -> None:
        self.requests.put += 1
        self.requests.bytes_out += len(body)
        await self._threads.run(self._put, key, body)

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        if length == 0 or (start and length is None):
            # No header can ask for nothing, and the answer does not tell an end from what is beyond it.
            size = await self.size(key)
            length = size - start if length is None else length
            if start + length > size or length < 0:
                raise Corrupt(f"{key} has {size} bytes, {max(start, start + length)} were asked for")
        if length == 0:
            return _checked(b"", key, start, check)
        self.requests.get += 1
        body = await self._threads.run(self._get, key, start, length, check)
        self.requests.bytes_in += len(body)
        return body

    async def size(self, key: str) -> int:
        self.requests.head += 1
        try:
            return await self._threads.run(self._size, key)
        except NotFound:
            # The answer does not say whether it is the object that is missing, or the bucket.
            self.requests.head += 1
            await self._threads.run(self._find_bucket)
            raise

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        last = ""
        more = True
        while more:
            self.requests.list += 1
            page, more = await self._threads.run(self._page, prefix, last)
            for info in page:
                yield info
                last = info.key

    async def delete(self, key: str) -> None:
        self.requests.delete += 1
        await self._threads.run(self._delete, key)

    async def capacity(self) -> Capacity | None:
        """None: a bucket has no bound that it tells."""
        await trio.lowlevel.checkpoint()
        return None

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._threads.close()

    # ---- in a thread

    def _put(self, client: "S3Client", key: str, body: bytes) -> None:
        place = self._place
        with translated(place, place.key(key)):
            client.put_object(Bucket=place.bucket, Key=place.key(key), Body=body, **place.put_options)

    def _get(self, client: "S3Client", key: str, start: int, length: int | None, check: Check | None) -> bytes:
        place = self._place
        options: dict[str, Any] = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        with translated(place, place.key(key)):
            answer = client.get_object(Bucket=place.bucket, Key=place.key(key), **options)
            with closing(answer["Body"]) as stream:
                body = stream.read()
        if length is not None:
            # Some servers know no ranges and send the whole object.
            part = body if "ContentRange" in answer else body[start : start + length]
            if len(part) != length:
                raise Corrupt(f"{key} is shorter than {start + length} bytes, which were asked for")
            body = part
        return _checked(body, key, start, check)

    def _size(self, client: "S3Client", key: str) -> int:
        with translated(self._place, self._place.key(key)):
            return client.head_object(Bucket=self._place.bucket, Key=self._place.key(key))["ContentLength"]

    def _find_bucket(self, client: "S3Client") -> None:
        try:
            with translated(self._place):
                client.head_bucket(Bucket=self._place.bucket)
        except NotFound as error:
            raise Denied(f"there is no bucket {self._place.bucket}: create it, or name another") from error

    def _page(self, client: "S3Client", prefix: str, last: str) -> tuple[tuple[ObjectInfo, ...], bool]:
        """The objects behind `last` that one answer holds, and whether there are more."""
        place = self._place
        options: dict[str, Any] = {"StartAfter": place.key(last)} if last else {}
        with translated(place):
            answer = client.list_objects_v2(Bucket=place.bucket, Prefix=place.key(prefix), **options)
        skip = len(place.key(""))
        page = tuple(ObjectInfo(one["Key"][skip:], one["Size"]) for one in answer.get("Contents", ()))
        return page, bool(page) and answer["IsTruncated"]

    def _delete(self, client: "S3Client", key: str) -> None:
        with translated(self._place, self._place.key(key)):
            client.delete_object(Bucket=self._place.bucket, Key=self._place.key(key))


def _checked(body: bytes, key: str, start: int, check: Check | None) -> bytes:
    if check is not None and not check(body):
        raise Corrupt(f"{key}: the bytes from {start} to {start + len(body)} are not what their hash says")
    return body
