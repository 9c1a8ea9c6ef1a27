"""Real S3 servers for tests: regions of `scripts/s3`, started when a test first asks for them, stopped when pytest ends.

A test takes the fixture `regions` and calls it: `north, south = regions(2)`. Each region has a new bucket for the test, and
what the test did to a region is undone after it. While a test has the fixture, its environment has the regions' credentials
and no others, which the processes that it starts inherit.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlencode
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import ObjectIdentifierTypeDef

SCRIPT: Final = Path(__file__).parent.parent / "scripts" / "s3"
_ISOLATION: Final = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
_UNDONE_BY: Final = {"freeze": "thaw", "kill": "start", "stop": "start", "deny": "allow"}
START_SECONDS: Final = 300
"""How long starting may take where the packages must be installed first."""


class Region:
    """One S3 server, and a bucket there that is the test's own. `part` is gateway, osd or monitor; without it all three."""

    def __init__(self, servers: "Servers", number: int, endpoint: str) -> None:
        self.endpoint = endpoint
        self.bucket = f"test-{uuid4().hex[:20]}"
        self.environment = servers.environment
        self._servers = servers
        self._number = number
        self._to_undo: set[str] = set()
        self.make_bucket()

    def url(self, prefix: str = "", **options: str) -> str:
        """What a replica in the test's bucket is called."""
        return f"s3://{self.bucket}/{prefix}".rstrip("/") + "?" + urlencode({"endpoint": self.endpoint, **options}, safe=":/")

    @property
    def client(self) -> "S3Client":
        """A client of the tests' own, beside the one of agentfs."""
        return self._servers.client(self.endpoint)

    def make_bucket(self) -> None:
        """Make the test's bucket; again, after the region lost what it had."""
        self.client.create_bucket(Bucket=self.bucket)

    def freeze(self, part: str = "") -> None:
        """Let it take connections and answer nothing."""
        self._disturb("freeze", part)

    def thaw(self, part: str = "") -> None:
        self._disturb("thaw", part)

    def kill(self, part: str = "") -> None:
        """End it as a crash does. With the store in memory a region without its OSD has lost everything, bucket included."""
        self._disturb("kill", part)

    def stop(self, part: str = "") -> None:
        """End it in good order; it keeps what it holds."""
        self._disturb("stop", part)

    def start(self) -> None:
        """Start what is down."""
        self._disturb("start", "")

    def deny(self) -> None:
        """Refuse the user everything."""
        self._disturb("deny", "")

    def allow(self) -> None:
        self._disturb("allow", "")

    def restore(self) -> None:
        """Undo what a test did, and remove its bucket."""
        for verb in sorted(self._to_undo, key=list(_UNDONE_BY.values()).index):
            self._servers.run(verb, str(self._number))
        try:
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
                keys: list[ObjectIdentifierTypeDef] = [{"Key": one["Key"]} for one in page.get("Contents", [])]
                if keys:
                    self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})
            self.client.delete_bucket(Bucket=self.bucket)
        except self.client.exceptions.NoSuchBucket:
            pass  # The region lost what it had.

    def _disturb(self, verb: str, part: str) -> None:
        if verb in _UNDONE_BY:
            self._to_undo.add(_UNDONE_BY[verb])
        elif not part:
            self._to_undo.discard(verb)
        self._servers.run(verb, str(self._number), *([part] if part else []))


class Servers:
    """The regions of one pytest process with one kind of store, in a directory and on ports of their own.

    They are stopped by a process that waits for this one's end, so that they do not outlive a pytest that was killed.
    """

    def __init__(self, store: str) -> None:
        self.environment: dict[str, str] = {}
        self._store = store
        self._endpoints: list[str] = []
        self._clients: dict[str, S3Client] = {}
        # A short path: daemons have sockets in there.
        self._directory = Path(tempfile.mkdtemp(prefix="agentfs-s3-"))
        stop = 'cat >/dev/null; exec "$0" down "$1" --wipe'
        self._stopper = subprocess.Popen(
            ["bash", "-c", stop, SCRIPT, self._directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def regions(self, count: int) -> list[Region]:
        """So many regions, each with a new bucket."""
        if len(self._endpoints) < count:
            output = self.run("up", count=count)
            exported = dict(re.findall(r"^export (\w+)=(.*)$", output, re.MULTILINE))
            self._endpoints = [exported.pop(f"S3_ENDPOINT_{number}") for number in range(1, count + 1)]
            self.environment |= exported | _ISOLATION
        return [Region(self, number, endpoint) for number, endpoint in enumerate(self._endpoints[:count], 1)]

    def client(self, endpoint: str) -> "S3Client":
        """The client for one of them, with the credentials of the user whose requests are refused and allowed."""
        if endpoint not in self._clients:
            import boto3
            from botocore.config import Config

            session = boto3.Session(
                aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
                region_name=self.environment["AWS_DEFAULT_REGION"],
            )
            config = Config(s3={"addressing_style": "path"}, proxies={})
            self._clients[endpoint] = session.client("s3", endpoint_url=endpoint, config=config)
        return self._clients[endpoint]

    def lend_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the environment have the regions' credentials, and no others."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def run(self, verb: str, *arguments: str, count: int | None = None) -> str:
        """Run a verb of `scripts/s3` on the directory, which comes behind the count where there is one; its output."""
        command = [str(SCRIPT), verb, *([] if count is None else [str(count)]), str(self._directory), *arguments]
        environment = {**os.environ, "STORE": self._store}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def close(self) -> None:
        """Stop the regions and remove their directory."""
        for client in self._clients.values():
            client.close()
        assert self._stopper.stdin is not None
        self._stopper.stdin.close()
        assert self._stopper.wait(timeout=60) == 0, f"the regions in {self._directory} did not stop"
        shutil.rmtree(self._directory, ignore_errors=True)


class ServersByStore(dict[str, Servers]):
    """The servers of a pytest process by the kind of their store; made when they are first asked for."""

    def __missing__(self, store: str) -> Servers:
        self[store] = Servers(store)
        return self[store]


class MakeRegions(Protocol):
    """What the fixture `regions` is."""

    def __call__(self, count: int, *, store: str = "memstore") -> list[Region]:
        """So many regions. "bluestore" instead of "memstore" survives a kill of all parts, and starts in seconds."""
        ...


@pytest.fixture(scope="session")
def region_servers() -> Iterator[ServersByStore]:
    """The servers that run, by the kind of their store."""
    servers = ServersByStore()
    yield servers
    for one in servers.values():
        one.close()


@pytest.fixture
def regions(region_servers: ServersByStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRegions]:
    """A function that gives so many regions, at most once in a test for each kind of store."""
    given: list[Region] = []

    def make(count: int, *, store: str = "memstore") -> list[Region]:
        made = region_servers[store].regions(count)
        given.extend(made)
        region_servers[store].lend_credentials(monkeypatch)
        return made

    yield make
    for region in given:
        region.restore()
