"""The requests that a journal makes of its bucket: conditional puts, gets, listings, deletions, in threads."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar, TypeVarTuple

import trio

from agentfs.model.errors import Denied, NotFound, Unavailable
from agentfs.runtime import Runtime
from agentfs.s3 import NOTE, S3Place, S3Threads, put_if, says_no_such_key, translated

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

T = TypeVar("T")
Args = TypeVarTuple("Args")

TIMEOUT_SECONDS: Final = 10.0
"""How long the server may be silent in the middle of a request."""

THREADS_MAX: Final = 16
"""How many requests are under way at once."""

ATTEMPTS_MAX: Final = 4
PATIENCE_SECONDS: Final = 3.0
"""How often a request is sent that fails for a reason that may pass, and how long after the first time the last may begin."""

PAUSE_SECONDS: Final = 0.05
"""The longest first pause between two attempts; it doubles."""

PAGE: Final = 1000
"""How many keys S3 lists, or deletes, in one request."""


Verb = Literal["put", "get", "list", "delete"]


class Object(NamedTuple):
    """What is kept under a key. `note`: what came with it when it was put."""

    body: bytes
    etag: str
    note: str


class Listed(NamedTuple):
    """One line of a listing. `etag`: another one whenever the body is."""

    key: str
    etag: str


@dataclass(slots=True)
class Requests:
    """How often the server was asked, by verb, whatever became of it."""

    put: int = 0
    get: int = 0
    list: int = 0
    delete: int = 0

    def count(self, verb: Verb) -> None:
        """One more is sent."""
        setattr(self, verb, getattr(self, verb) + 1)


class Bucket:
    """The objects below `journal/` in a place. All it raises: Denied, NoSpace, Unavailable.

    A caller that is cancelled leaves at once; its request goes on, for TIMEOUT_SECONDS at most after the server's last word.
    Whatever can be asked twice without harm is asked again after Unavailable, for a short while.
    """

    def __init__(self, place: S3Place, runtime: Runtime) -> None:
        self.place = place
        self.requests = Requests()
        self._runtime = runtime
        self._threads = S3Threads(place, runtime=runtime, threads_max=THREADS_MAX, timeout_seconds=TIMEOUT_SECONDS)
        self._closed = False

    @property
    def text(self) -> str:
        """What to call the journal in messages."""
        where = f"s3://{self.place.bucket}/{self.place.prefix}".rstrip("/")
        return f"{where} at {self.place.endpoint}" if self.place.endpoint else where

    async def put_new(self, key: str, body: bytes, *, note: str = "") -> bool:
        """Put an object where there is none; False if there is one. Asked once: after Unavailable it may be there or not."""
        return await self._run("put", self._put_if, key, body, None, note)

    async def replace(self, key: str, body: bytes, etag: str, *, note: str = "") -> bool:
        """Put an object in place of the one with this ETag; False if that is there no more. Asked once, like `put_new`."""
        return await self._run("put", self._put_if, key, body, etag, note)

    async def put(self, key: str, body: bytes) -> None:
        """Put an object, whatever is there."""
        await self._persist(lambda: self._run("put", self._put, key, body))

    async def get(self, key: str) -> Object | None:
        """The object; None if there is none."""
        return await self._persist(lambda: self._get_once(key))

    async def listing(self, prefix: str, *, after: str = "", limit: int = PAGE) -> Sequence[Listed]:
        """The first so many of the objects whose keys begin with `prefix`, and lie behind `after`, in the keys' order."""
        return await self._persist(lambda: self._run("list", self._list, prefix, after, limit))

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove up to PAGE objects; those that are not there are ignored."""
        await self._persist(lambda: self._run("delete", self._delete, keys))

    def refuse_when_closed(self) -> None:
        """Raise Unavailable once `close` was called."""
        if self._closed:
            raise Unavailable(f"the journal {self.text} is closed")

    def close(self) -> None:
        """Ask nothing more."""
        self._closed = True
        self._threads.close()

    async def _get_once(self, key: str) -> Object | None:
        try:
            return await self._run("get", self._get, key)
        except NotFound as error:
            if says_no_such_key(error):
                return None
            # Something between here and the bucket says it: it is no word about the object.
            raise Unavailable(f"{error}, and not in S3's words") from error

    # ---- in a thread

    def _put_if(self, client: "S3Client", key: str, body: bytes, match: str | None, note: str) -> bool:
        return put_if(client, self.place, _inner(key), body, match=match, note=note)

    def _put(self, client: "S3Client", key: str, body: bytes) -> None:
        full = self.place.key(_inner(key))
        with translated(self.place, full):
            client.put_object(Bucket=self.place.bucket, Key=full, Body=body, **self.place.put_options)

    def _get(self, client: "S3Client", key: str) -> Object:
        full = self.place.key(_inner(key))
        with translated(self.place, full):
            answer = client.get_object(Bucket=self.place.bucket, Key=full)
            with closing(answer["Body"]) as stream:
                return Object(stream.read(), answer["ETag"], answer["Metadata"].get(NOTE, ""))

    def _list(self, client: "S3Client", prefix: str, after: str, limit: int) -> Sequence[Listed]:
        place, skip = self.place, len(self.place.key(_inner("")))
        with translated(place):
            answer = client.list_objects_v2(
                Bucket=place.bucket,
                Prefix=place.key(_inner(prefix)),
                StartAfter=place.key(_inner(after)) if after else "",
                MaxKeys=limit,
            )
        return [Listed(one["Key"][skip:], one["ETag"]) for one in answer.get("Contents", ())]

    def _delete(self, client: "S3Client", keys: Sequence[str]) -> None:
        place = self.place
        with translated(place):
            answer = client.delete_objects(
                Bucket=place.bucket, Delete={"Objects": [{"Key": place.key(_inner(key))} for key in keys], "Quiet": True}
            )
        for error in answer.get("Errors", ()):
            kind = Denied if error.get("Code") == "AccessDenied" else Unavailable
            raise kind(f"{self.text}: {error.get('Key')} was not removed: {error.get('Message') or error.get('Code')}")

    # ----

    async def _persist(self, ask: Callable[[], Awaitable[T]]) -> T:
        patience = Patience(self._runtime)
        while True:
            try:
                return await ask()
            except Unavailable as error:
                self.refuse_when_closed()
                await patience.wait_after(error)

    async def _run(self, verb: Verb, function: "Callable[[S3Client, *Args], T]", *args: *Args) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        self.refuse_when_closed()
        self.requests.count(verb)
        return await self._threads.run(function, *args)


class Patience:
    """How often one thing is tried yet, and how long it is waited in between."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._deadline = runtime.boottime() + PATIENCE_SECONDS
        self._attempts = 1
        self._pause_seconds = PAUSE_SECONDS

    async def wait_after(self, error: Unavailable) -> None:
        """Wait until it may be tried again; raise `error` if it may not."""
        pause = max(self._pause_seconds * (0.5 + 0.5 * self._runtime.jitter()), error.retry_after_seconds or 0.0)
        if self._attempts == ATTEMPTS_MAX or self._runtime.boottime() + pause >= self._deadline:
            raise error
        self._attempts += 1
        self._pause_seconds *= 2
        await self._runtime.sleep(pause)


def _inner(key: str) -> str:
    return f"journal/{key}"
