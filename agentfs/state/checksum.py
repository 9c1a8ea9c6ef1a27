"""The checksum of a State at a position: how drift between mounts is measured."""

import hashlib

import msgspec

from agentfs.state.schema import CONTENT
from agentfs.state.tables import Tables


def checksum(tables: Tables) -> str:
    """SHA-256, in hex, over every row of every table in the order of keys. Reads the whole State: not for a hot path."""
    tables.flush()
    digest = hashlib.sha256()
    encoder = msgspec.msgpack.Encoder()
    for table, order in CONTENT.items():
        digest.update(table.encode())
        for row in tables.db.execute(f"SELECT * FROM {table} ORDER BY {order}"):
            digest.update(encoder.encode(row))
    return digest.hexdigest()
