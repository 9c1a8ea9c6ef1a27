"""A server that does not honour the conditions of puts is refused as the place of a journal, and the reason is given."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from re import findall
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import trio

from agentfs.journal.s3 import create_s3_journal, open_s3_journal
from agentfs.model.errors import AgentfsError, Denied, Invalid, Unavailable
from agentfs.runtime import SystemRuntime

BOUND_SECONDS = 60


class ObjectServer:
    """A small S3 server in memory. `honours`: the conditions of puts that it heeds; `atomically`: and in one step."""

    def __init__(self, *, honours: frozenset[str] = frozenset({"If-None-Match", "If-Match"})) -> None:
        self.honours = honours
        self.atomically = True
        self.status_of_conditions = 412
        self.code_of_deletions = ""
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.together = threading.Barrier(8, timeout=10)
        self.endpoint = ""
        self.lock = threading.Lock()

    def refuses(self, key: str, headers: dict[str, str]) -> bool:
        """Whether a put's conditions do not hold."""
        there = self.objects.get(key)
        if "If-None-Match" in headers and "If-None-Match" in self.honours and there is not None:
            return True
        return "If-Match" in headers and "If-Match" in self.honours and (there is None or headers["If-Match"] != etag(there[0]))


def etag(body: bytes) -> str:
    return f"{hash(body) & (1 << 64) - 1:032x}"


@contextmanager
def served(server: ObjectServer) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            key, body = self.key(), self.body()
            headers = dict(self.headers)
            conditional = "If-None-Match" in headers or "If-Match" in headers
            if conditional and server.status_of_conditions != 412:
                self.answer(server.status_of_conditions, b"<Error><Code>NotImplemented</Code></Error>")
                return
            with server.lock:
                refused = server.refuses(key, headers)
            if not server.atomically and "-race" in key:
                server.together.wait()
            with server.lock:
                if not refused and not (server.atomically and server.refuses(key, headers)):
                    metadata = {name: value for name, value in headers.items() if name.lower().startswith("x-amz-meta-")}
                    server.objects[key] = body, metadata
                    self.answer(200, ETag=f'"{etag(body)}"')
                    return
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            if "list-type" in query:
                self.list(query["prefix"][0], query.get("start-after", [""])[0], int(query["max-keys"][0]))
                return
            found = server.objects.get(self.key())
            if found is None:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            else:
                self.answer(200, found[0], ETag=f'"{etag(found[0])}"', **found[1])

        def do_POST(self) -> None:
            keys, refused = findall(r"<Key>(.*?)</Key>", self.body().decode()), server.code_of_deletions
            if not refused:
                for key in keys:
                    server.objects.pop(key, None)
            errors = "".join(f"<Error><Key>{key}</Key><Code>{refused}</Code></Error>" for key in keys if refused)
            self.answer(200, f"<DeleteResult>{errors}</DeleteResult>".encode())

        def list(self, prefix: str, after: str, limit: int) -> None:
            keys = sorted(key for key in server.objects if key.startswith(prefix) and key > after)[:limit]
            lines = "".join(f"<Contents><Key>{key}</Key><ETag>{etag(server.objects[key][0])}</ETag></Contents>" for key in keys)
            self.answer(200, f"<ListBucketResult>{lines}</ListBucketResult>".encode())

        def key(self) -> str:
            return unquote(urlsplit(self.path).path).split("/", 2)[-1]

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, status: int, body: bytes = b"", /, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.endpoint = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ObjectServer]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ObjectServer()
    with trio.fail_after(BOUND_SECONDS), served(server):
        yield server


async def create(server: ObjectServer) -> str:
    url = f"s3://bucket/workspace?endpoint={server.endpoint}"
    await create_s3_journal(url, runtime=SystemRuntime())
    return url


async def test_a_server_that_honours_them_will_do(server: ObjectServer) -> None:
    async with open_s3_journal(await create(server), runtime=SystemRuntime()) as journal:
        assert [await journal.append(b"a"), await journal.append(b"b")] == [1, 2]
        await journal.beat(7)
        assert (await journal.beats()).keys() == {7}


@pytest.mark.parametrize(
    ("honours", "reason"),
    [
        (set(), r"a put with If-None-Match: \* replaces what is there"),
        ({"If-Match"}, r"a put with If-None-Match: \* replaces what is there"),
        ({"If-None-Match"}, "a put with If-Match replaces another object than the one it names"),
    ],
    ids=["neither", "no If-None-Match", "no If-Match"],
)
async def test_a_server_that_ignores_a_condition_is_refused(server: ObjectServer, honours: set[str], reason: str) -> None:
    server.honours = frozenset(honours)
    with pytest.raises(Invalid, match=f"^s3://bucket/workspace at {server.endpoint} cannot keep a journal: {reason}"):
        await create(server)
    assert not [key for key in server.objects if key.endswith("journal.json")]


async def test_a_server_that_heeds_them_in_two_steps_is_refused(server: ObjectServer) -> None:
    server.atomically = False
    with pytest.raises(Invalid, match=r"of 8 puts with If-None-Match: \* at the same time 8 succeeded"):
        await create(server)


async def test_a_server_that_does_not_know_them_is_refused(server: ObjectServer) -> None:
    server.status_of_conditions = 501
    with pytest.raises(Denied, match="the server does not offer what is asked of it"):
        await create(server)


@pytest.mark.parametrize(("code", "kind"), [("AccessDenied", Denied), ("InternalError", Unavailable)])
async def test_a_server_that_does_not_delete_is_refused(server: ObjectServer, code: str, kind: type[AgentfsError]) -> None:
    server.code_of_deletions = code
    with pytest.raises(kind, match=f"journal/probes/.* was not removed: {code}"):
        await create(server)


async def test_the_probe_leaves_nothing(server: ObjectServer) -> None:
    await create(server)
    assert list(server.objects) == ["workspace/journal/journal.json"]
