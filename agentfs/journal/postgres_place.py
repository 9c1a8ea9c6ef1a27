"""Where a PostgreSQL journal is: its URL, which holds no password, and the addresses that its hosts have just now."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import psycopg
import trio
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from agentfs.model.errors import Invalid, Unavailable
from agentfs.runtime import Threads

LOOK_UP_SECONDS: Final = 5.0
"""How long the name service has for each host."""

_SECRETS: Final = ("password", "sslpassword")
_WHERE_SECRETS_GO: Final = "a password file (PGPASSFILE), a service file (PGSERVICE) or PGPASSWORD"

_DEFAULT_PORT: Final = "5432"

_SETTINGS: Final = {
    "fallback_application_name": "agentfs",
    # An idle connection stays known to the firewalls in between, and one whose other end is gone is noticed before it is used.
    "keepalives_idle": "30",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""What the URL may set otherwise."""

_DEMANDS: Final = {
    "client_encoding": "UTF8",
    # Of several hosts only the one that takes writes will do: a standby's tail may be behind.
    "target_session_attrs": "read-write",
}
"""What it may not."""


@dataclass(frozen=True, slots=True)
class Place:
    """A database. `text` names it in messages, without a user and without what could be secret."""

    text: str
    options: Mapping[str, str]

    async def targets(self, threads: Threads) -> list[bytes]:
        """How to connect to each of its hosts' addresses, in the order in which they are to be tried.

        Names are looked up here, in a thread: libpq would hold up the event loop for it. Raises Unavailable.
        """
        hosts = self.options.get("host", "").split(",")
        ports = (self.options.get("port") or _DEFAULT_PORT).split(",")
        if self.options.get("hostaddr"):
            return [self._conninfo({})]
        found: list[bytes] = []
        for index, host in enumerate(hosts):
            port = ports[index if len(ports) > 1 else 0] or _DEFAULT_PORT
            if not host or host.startswith(("/", "@")):
                found.append(self._conninfo({"host": host, "port": port}))
            else:
                addresses = await _addresses(host, int(port), threads)
                found += [self._conninfo({"host": host, "hostaddr": address, "port": port}) for address in addresses]
        return found

    def _conninfo(self, target: Mapping[str, str]) -> bytes:
        return make_conninfo(**{**_SETTINGS, **self.options, **_DEMANDS, **target}).encode()


def place_of(url: str) -> Place:
    """The place that a URL and libpq's environment variables give. Raises Invalid, and never repeats what may be a secret."""
    # What is in the URL is seen in process lists, and what is wrong with it may be part of a password: it is never quoted.
    if not url.startswith(("postgresql://", "postgres://")):
        raise Invalid("the journal's URL is not one of PostgreSQL: postgresql://USER@HOST:PORT/DATABASE")
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.Error:
        raise Invalid("the journal's URL cannot be understood: postgresql://USER@HOST:PORT/DATABASE") from None
    if any(secret in given for secret in _SECRETS):
        raise Invalid(f"the journal's URL holds a password, which others could see: put it in {_WHERE_SECRETS_GO}")
    if "service" in given:
        raise Invalid("the journal's URL names a service: name it in PGSERVICE instead")
    options = {**_surroundings(), **given}
    hosts, ports = options.get("host", "").split(","), options.get("port", "").split(",")
    if len(ports) not in (1, len(hosts)) or not all(_is_port(port) for port in ports):
        raise Invalid("the journal's URL has a port that is not one: postgresql://USER@HOST:PORT/DATABASE")
    return Place(_text(options, hosts, ports), options)


def _surroundings() -> dict[str, str]:
    """Where the environment and the service file that it names say the server is; the rest of it libpq looks up itself."""
    wanted = (b"host", b"hostaddr", b"port", b"dbname")
    defaults = {option.keyword: option.val for option in pq.Conninfo.get_defaults()}
    return {name.decode(): value.decode() for name in wanted if (value := defaults.get(name))}


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 16)


def _text(options: Mapping[str, str], hosts: list[str], ports: list[str]) -> str:
    places = [f"{host}:{ports[min(index, len(ports) - 1)] or _DEFAULT_PORT}" for index, host in enumerate(hosts)]
    return f"postgresql://{','.join(places)}/{options.get('dbname', '')}"


async def _addresses(host: str, port: int, threads: Threads) -> list[str]:
    with trio.move_on_after(LOOK_UP_SECONDS):
        return await threads.run(_look_up, host, port)
    raise Unavailable(f"the journal's host {host} could not be looked up within {LOOK_UP_SECONDS:g} seconds")


def _look_up(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(f"the journal's host {host} has no address: {error.strerror}") from error
    # A name may be in the answer several times.
    return list(dict.fromkeys(str(address[4][0]) for address in found))
