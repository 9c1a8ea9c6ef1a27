"""Whether an S3 server can keep a journal: it must honour the conditions of puts, which not every server does."""

from typing import Final

import trio

from agentfs.journal.s3_bucket import Bucket
from agentfs.model.errors import AgentfsError, Invalid
from agentfs.runtime import Runtime

TOGETHER: Final = 8
"""How many puts are sent at the same time, of which one may succeed."""

_PREFIX: Final = "probes/"


async def check_conditional_puts(bucket: Bucket, runtime: Runtime) -> None:
    """Try what appending relies on with objects of its own, and remove them. Raises Invalid, Denied, Unavailable."""
    key = _PREFIX + runtime.random_bytes(16).hex()
    await _probe(bucket, key)
    await _race(bucket, f"{key}-race")
    await bucket.delete([key, f"{key}-race"])


async def _probe(bucket: Bucket, key: str) -> None:
    if await bucket.get(key) is not None or not await bucket.put_new(key, b"first"):
        raise _refusal(bucket, "it says that an object is there which was never put")
    if await bucket.put_new(key, b"second") or await _body(bucket, key) != b"first":
        raise _refusal(bucket, "a put with If-None-Match: * replaces what is there")
    listed = await bucket.listing(_PREFIX, after=key[:-1], limit=1)
    if [one.key for one in listed] != [key]:
        raise _refusal(bucket, "a listing does not show what was put before")
    found = await bucket.get(key)
    assert found is not None, "its body was compared just now"
    if await bucket.replace(key, b"third", "0" * 32) or await _body(bucket, key) != b"first":
        raise _refusal(bucket, "a put with If-Match replaces another object than the one it names")
    if not await bucket.replace(key, b"third", found.etag) or await _body(bucket, key) != b"third":
        raise _refusal(bucket, "a put with If-Match does not replace the object that it names")


async def _race(bucket: Bucket, key: str) -> None:
    bodies = [b"%d" % number for number in range(TOGETHER)]
    winners: list[bytes] = []
    failures: list[AgentfsError] = []

    async def put(body: bytes) -> None:
        try:
            if await bucket.put_new(key, body):
                winners.append(body)
        except AgentfsError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for body in bodies:
            nursery.start_soon(put, body)
    if len(winners) > 1:
        raise _refusal(bucket, f"of {TOGETHER} puts with If-None-Match: * at the same time {len(winners)} succeeded")
    if failures and not winners:
        raise failures[0]
    if winners != [await _body(bucket, key)]:
        raise _refusal(bucket, "what is there is not what the one put with If-None-Match: * that succeeded has put")


async def _body(bucket: Bucket, key: str) -> bytes | None:
    found = await bucket.get(key)
    return found.body if found is not None else None


def _refusal(bucket: Bucket, reason: str) -> Invalid:
    return Invalid(f"{bucket.text} cannot keep a journal: {reason}. Use another S3 server, or PostgreSQL for the journal")
