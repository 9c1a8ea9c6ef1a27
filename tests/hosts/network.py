"""A network for tests: hosts are network namespaces behind a router, and reach the servers on the tests' own loopback.

    the servers             the router          the hosts
    127.0.0.1:PORT ── veth ── root  a ── veth ── 198.18.N.10
                                    b ── veth ── 198.18.N.11

A host has no loopback of its own: for it 127.0.0.1 is behind the router, so that the servers need no other address than the
one that they have in all tests, and one URL means the same everywhere. What is cut is dropped by the router, and nobody is
told, as when a cable is cut or a firewall drops: connections stay, and are silent.

Needs root and iproute2; everything is in namespaces but one interface and one route, which go when the router goes.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from tests.hosts.keeper import NAMESPACES, mounts_left

REPOSITORY: Final = Path(__file__).parents[2]
SERVERS: Final = "127.0.0.1"

SUBNETS: Final = "198.18"
"""RFC 2544 sets these addresses aside for tests of networks, so that they are nobody's."""

FIRST_HOST: Final = 10

PRIVILEGES: Final = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2, to make networks"
)


class Wire:
    """What connects one host with the network. `namespace` is the file that names the host's network for setns(2)."""

    def __init__(self, router: str, subnet: str, prefix: str, host: str, number: int) -> None:
        self.namespace = NAMESPACES / f"{prefix}-{host}"
        self._router = router
        self._host = host
        self._address = f"{subnet}.{number}"
        self._dropped: set[tuple[str, ...]] = set()
        gateway = f"{subnet}.2"
        name = self.namespace.name
        ip("netns", "add", name)
        ip("link", "add", "name", host, "type", "veth", "peer", "name", "eth0", "netns", name, within=router)
        _connect(router, host, local=gateway, peer=self._address)
        _connect(name, "eth0", local=self._address, peer=gateway)
        ip("route", "add", SERVERS, "via", gateway, "dev", "eth0", within=name)

    def cut(self, port: int) -> None:
        """Let nothing through between the host and a server, either way."""
        self._drop("iif", self._host, "ipproto", "tcp", "dport", str(port))
        self.lose_answers(port)

    def lose_answers(self, port: int) -> None:
        """Let what the host says come to the server, and nothing of what that answers to the host."""
        self._drop("to", self._address, "ipproto", "tcp", "sport", str(port))

    def heal(self, port: int) -> None:
        """Take back what was done about a server."""
        self._pass_again({rule for rule in self._dropped if rule[-1] == str(port)})

    def unplug(self) -> None:
        """Let nothing through to anybody."""
        ip("link", "set", "dev", self._host, "down", within=self._router)

    def plug(self) -> None:
        """Take `unplug` back."""
        ip("link", "set", "dev", self._host, "up", within=self._router)

    def remove(self) -> None:
        """Take the host out of the network, in which nothing of it may run any more; its name is free then."""
        self._pass_again(set(self._dropped))
        ip("link", "delete", "dev", self._host, within=self._router)
        ip("netns", "delete", self.namespace.name)

    def _pass_again(self, rules: set[tuple[str, ...]]) -> None:
        for rule in rules:
            ip("rule", "delete", *rule, "blackhole", within=self._router)
        self._dropped -= rules

    def _drop(self, *rule: str) -> None:
        if rule not in self._dropped:
            ip("rule", "add", *rule, "blackhole", within=self._router)
            self._dropped.add(rule)


class Network:
    """A router, and the wires of its hosts, which have their files below `directory`.

    Each network has names and addresses of its own: any number are side by side.
    """

    def __init__(self, prefix: str, directory: Path) -> None:
        self.directory = directory
        self._prefix = prefix
        self._router = f"{prefix}-router"
        self._hosts = 0
        outside = f"afs{prefix.rpartition('-')[2]}"
        ip("netns", "add", self._router)
        ip("link", "add", "name", outside, "type", "veth", "peer", "name", "root", "netns", self._router)
        _switch_on(self._router, "ip_forward")
        ip("link", "set", "dev", outside, "up")
        self._subnet = _claim_subnet(outside)
        _connect("", outside, local=f"{self._subnet}.1", peer=f"{self._subnet}.2")
        _connect(self._router, "root", local=f"{self._subnet}.2", peer=f"{self._subnet}.1")
        ip("route", "add", SERVERS, "via", f"{self._subnet}.1", "dev", "root", within=self._router)

    @property
    def addresses(self) -> str:
        """Where the hosts are, as servers see it: "198.18.7.0/24"."""
        return f"{self._subnet}.0/24"

    def add(self, host: str) -> Wire:
        """Connect a new host, by a short name that no other has now."""
        wire = Wire(self._router, self._subnet, self._prefix, host, FIRST_HOST + self._hosts)
        self._hosts += 1
        return wire


@contextmanager
def network(directory: Path) -> Iterator[Network]:
    """A network. In the end nothing of it is left: nothing runs in it, and nothing is mounted below `directory`."""
    prefix = f"agentfs-{uuid4().hex[:8]}"
    keeper = [sys.executable, "-m", "tests.hosts.keeper", prefix, str(directory)]
    with subprocess.Popen(keeper, stdin=subprocess.PIPE, cwd=REPOSITORY, start_new_session=True) as process:
        # A pipe that closes when this process ends, however it ends.
        yield Network(prefix, directory)
    assert process.returncode == 0, f"{prefix} could not be removed"
    assert not list(NAMESPACES.glob(f"{prefix}-*"))
    assert not mounts_left(directory)


def ip(*arguments: str, within: str = "") -> None:
    """Run ip(8), which must succeed; `within` names a namespace."""
    done = _ip(*arguments, within=within)
    assert done.returncode == 0, f"{done.args}: {done.stderr.strip()}"


def _ip(*arguments: str, within: str) -> subprocess.CompletedProcess[str]:
    command = ["ip", *(("-n", within) if within else ()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _claim_subnet(interface: str) -> str:
    """The first three numbers of addresses that nobody else has: a route to the same can be added once only."""
    for number in random.sample(range(256), 256):
        subnet = f"{SUBNETS}.{number}"
        route = (f"{subnet}.0/24", "via", f"{subnet}.2", "dev", interface, "onlink")
        if _ip("route", "add", *route, within="").returncode == 0:
            return subnet
    raise AssertionError(f"no addresses are free: all of {SUBNETS}.0.0/16 have routes")


def _connect(namespace: str, interface: str, *, local: str, peer: str) -> None:
    """Give one end of a link its address, and let packets of the loopback's addresses pass it, which are dropped otherwise."""
    ip("address", "add", f"{local}/32", "peer", f"{peer}/32", "dev", interface, within=namespace)
    _switch_on(namespace, f"conf/{interface}/route_localnet")
    ip("link", "set", "dev", interface, "up", within=namespace)


def _switch_on(namespace: str, setting: str) -> None:
    write = ["sh", "-c", f"echo 1 >/proc/sys/net/ipv4/{setting}"]
    enter = ["nsenter", f"--net={NAMESPACES / namespace}"] if namespace else []
    subprocess.run([*enter, *write], check=True, timeout=60)
