"""What an S3 server was asked, by whomever: its own counters (`perf dump` of the RADOS Gateway), the same for every client."""

import json
import socket
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.regions import Region


class Requests(NamedTuple):
    """How many requests, and how many bytes of objects. HEADs that found something are among `gets`."""

    puts: int
    gets: int
    others: int
    """Lists, deletions, copies inside the server, and whatever failed."""

    bytes_in: int
    """What was put."""

    bytes_out: int
    """What was got."""

    def since(self, before: "Requests") -> "Requests":
        """What came since."""
        return Requests(*(after - earlier for after, earlier in zip(self, before, strict=True)))


class Gateway:
    """One region of `scripts/s3`, and the bucket there."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self._socket = _directory(region) / "run" / "client.rgw.asok"

    def requests(self) -> Requests:
        """All requests since the server began."""
        counts = self._ask("perf dump")["rgw"]
        puts, gets = counts["put"], counts["get"]
        return Requests(puts, gets, counts["req"] - puts - gets, counts["put_b"], counts["get_b"])

    def _ask(self, command: str) -> dict[str, dict[str, int]]:
        """A command of the admin socket: the answer is its length in four bytes, and JSON."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._socket))
            connection.sendall(json.dumps({"prefix": command}).encode() + b"\0")
            with connection.makefile("rb") as answer:
                (length,) = struct.unpack(">I", answer.read(4))
                return dict(json.loads(answer.read(length)))


def _directory(region: Region) -> Path:
    """The region's directory: the one that says it has the endpoint's port."""
    port = str(urlsplit(region.endpoint).port)
    ports = Path(tempfile.gettempdir()).glob("agentfs-s3-*/*/port")
    return next(path.parent for path in ports if path.read_text().strip() == port)
