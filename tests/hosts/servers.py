"""What a workspace's journal can be on: a PostgreSQL server that hosts of a network may use, or an S3 region."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.hosts.network import Network
from tests.mount.place import NAME
from tests.postgres_server import PostgresServer, postgres_server
from tests.regions import Region


@dataclass(frozen=True, slots=True)
class JournalServer:
    """Where a new workspace's journal may be; one of `region` and `database` is what it is on."""

    url: str
    port: int
    region: Region | None = None
    database: PostgresServer | None = None

    @property
    def what(self) -> str:
        """The engine's name."""
        return "PostgreSQL" if self.database else "S3"

    def crash(self) -> None:
        """End it as a crash does, what it holds on disk apart, and start it again."""
        if self.database is not None:
            self.database.restart()
        if self.region is not None:
            self.region.kill("gateway")
            self.region.start()


def on_postgres(database: PostgresServer) -> JournalServer:
    """A database of its own for the journal."""
    return JournalServer(f"{database.url(database.new_database())}?workspace={NAME}", database.port, database=database)


def on_s3(region: Region) -> JournalServer:
    """A prefix in the test's bucket."""
    return JournalServer(region.url("journal"), port_of(region), region=region)


def port_of(region: Region) -> int:
    """Where a region is on loopback."""
    return int(region.endpoint.rpartition(":")[2])


@contextmanager
def postgres_for(network: Network) -> Iterator[PostgresServer]:
    """A PostgreSQL server that the network's hosts may use."""
    with postgres_server() as server:
        with (server.directory / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {network.addresses} trust\n")
        server.restart()
        yield server
