"""The tree that State holds is the one that a filesystem of dictionaries makes of the same journal."""

from agentfs.model.extents import Extent
from agentfs.model.ids import Position
from agentfs.state.apply import apply_entry
from agentfs.state.tables import Tables, open_tables
from tests.simulation.dictionary import Dictionary
from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """Inodes that differ, and transactions of which only one of the two says that they took effect."""
    wrong = []
    tables, model = open_tables(None), Dictionary(evidence.recall, evidence.witness.late)
    for number, entry in enumerate(evidence.entries, 1):
        before = {session: model.seen[session] for session in model.seen}
        outcomes = apply_entry(tables, entry, Position(number))
        tables.settle()
        for transaction, outcome, took in zip(entry.transactions, outcomes, model.apply(entry), strict=True):
            again = entry.session and transaction.number <= before.get(entry.session, 0) and entry.session not in model.ended
            if not again and took != (outcome is None):
                wrong.append(f"entry {number}, transaction {transaction.number}: {outcome!r}, the dictionaries say {took}")
    tables.flush()
    inos = {row[0] for row in tables.db.execute("SELECT ino FROM inodes")}
    if inos != set(model.nodes):
        wrong.append(f"inodes {sorted(inos ^ set(model.nodes))} are in one of the two only")
    for ino in sorted(inos & set(model.nodes)):
        wrong += _differences(evidence, tables, model, ino)
    tables.close()
    return wrong


def _differences(evidence: Evidence, tables: Tables, model: Dictionary, ino: int) -> list[str]:
    (row,) = tables.db.execute("SELECT mode, nlink, size, target FROM inodes WHERE ino = ?", (ino,))
    node = model.nodes[ino]
    subdirectories = sum(model.nodes[each].is_dir for each in node.names.values())
    links = 2 + subdirectories if node.is_dir else model.links(ino)
    size = len(node.target) if node.target else len(node.body)
    names = dict(tables.db.execute("SELECT name, ino FROM dentries WHERE parent = ?", (ino,)).fetchall())
    xattrs = dict(tables.db.execute("SELECT name, value FROM xattrs WHERE ino = ?", (ino,)).fetchall())
    pairs = {
        "attributes": (tuple(row), (node.mode, links, size, node.target)),
        "names": (names, node.names),
        "xattrs": (xattrs, node.xattrs),
        "content": (content(evidence, tables, ino), node.body),
    }
    return [f"inode {ino}: {what} differ" for what, (one, two) in pairs.items() if one != two]


def content(evidence: Evidence, tables: Tables, ino: int) -> bytes:
    """A file's bytes as the extents name them."""
    inode = tables.inode(ino)  # type: ignore[arg-type]
    if inode is None or not inode.is_file:
        return b""
    body = bytearray(inode.size)
    for extent in tables.extents(inode.ino, 0, inode.size):
        body[extent.offset : extent.end] = _bytes(evidence, tables, extent)
    return bytes(body)


def _bytes(evidence: Evidence, tables: Tables, extent: Extent) -> bytes:
    if extent.chunk is None:
        return extent.data
    raw = evidence.fetch(tables.segment_name(extent.segment), extent.chunk)
    return raw[extent.skip : extent.skip + extent.length]
