"""Staging: what a reader sees of dirty bytes, what a commit takes, and what the log says after a kill."""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from agentfs.model.entry import Transaction
from agentfs.model.errors import TooLarge
from agentfs.model.ids import Ino, Position, TxnNumber, first_ino
from agentfs.model.ids import SessionId as Session
from agentfs.workspace.committer import Pending
from agentfs.workspace.left_over import LeftOver
from agentfs.workspace.staging import Layer, Staging
from agentfs.workspace.staging_log import Cut, Forgotten, Frozen, Staged, StagingLog, Submitted, Withdrawn, read_staging_log
from tests.simulation.entries import make, text

F = first_ino(Session(1))
G = Ino(F + 1)


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[Staging]:
    staging = Staging(tmp_path, lambda: 0.0)
    yield staging
    staging.close()


def write(staging: Staging, ino: Ino, offset: int, data: bytes, *, base: int = 0, append: bool = False) -> None:
    """Stage a write to a file that has `base` bytes in State."""
    file = staging.files.get(ino)
    staging.write(ino, offset, data, size=file.size if file else base, now_ns=1, append=append)


def truncate(staging: Staging, ino: Ino, size: int, *, base: int = 0) -> None:
    file = staging.files.get(ino)
    staging.truncate(ino, size, size=file.size if file else base, now_ns=2)


def seen(staging: Staging, ino: Ino, committed: bytes) -> bytes:
    """The file as a reader assembles it over `committed`."""
    file = staging.files.get(ino)
    if file is None:
        return committed
    kept = committed if file.cut is None else committed[: file.cut]
    body = bytearray(kept[: file.size].ljust(file.size, b"\0"))
    for offset, piece in file.pieces(0, file.size):
        body[offset : offset + len(piece)] = piece
    return bytes(body)


def sent(layers: list[Layer], committed: bytes) -> bytes:
    """The file once a commit of these layers is applied over `committed`."""
    body = bytearray(committed)
    for layer in layers:
        if layer.cut is not None:
            del body[layer.cut :]
        for start, end in layer.ranges:
            body.extend(bytes(max(0, end - len(body))))
            body[start:end] = os.pread(layer.fd, end - start, start)
        if layer.grown is not None:
            body.extend(bytes(max(0, layer.grown - len(body))))
    return bytes(body)


@pytest.mark.parametrize("seed", range(10))
def test_reads_and_commits_are_those_of_a_byte_array(staging: Staging, seed: int) -> None:
    random = Random(seed)
    committed = random.randbytes(60)
    model = bytearray(committed)
    for step in range(120):
        roll, base = random.random(), len(committed)
        if roll < 0.6:
            offset, data = random.randint(0, 90), random.randbytes(random.randint(1, 30))
            append = random.random() < 0.3
            write(staging, F, offset, data, base=base, append=append)
            offset = len(model) if append else offset
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + len(data)] = data
        elif roll < 0.8:
            size = random.randint(0, 100)
            if size != len(model):
                truncate(staging, F, size, base=base)
                del model[size:]
                model.extend(bytes(size - len(model)))
        elif F in staging.files:
            file = staging.files[F]
            layers = staging.freeze(file)
            if random.random() < 0.5:
                # It is submitted, State shows it, and the journal has it later: here, at once.
                committed = sent(layers, committed)
                staging.committed(file, layers)
        assert seen(staging, F, committed) == model, f"seed {seed}, step {step}"
    if F in staging.files:
        assert sent(staging.freeze(staging.files[F]), committed) == model, f"seed {seed}"


def test_a_frozen_layer_does_not_change_under_its_commit(staging: Staging) -> None:
    write(staging, F, 0, b"0123456789")
    file = staging.files[F]
    layers = staging.freeze(file)
    write(staging, F, 2, b"xy")
    truncate(staging, F, 6)
    assert sent(layers, b"") == b"0123456789"
    assert seen(staging, F, b"") == b"01xy45"
    staging.committed(file, layers)
    assert seen(staging, F, b"0123456789") == b"01xy45"
    assert sent(staging.freeze(file), b"0123456789") == b"01xy45"


def test_what_is_committed_is_forgotten_and_its_slot_used_again(staging: Staging, tmp_path: Path) -> None:
    for _ in range(50):
        write(staging, F, 0, b"body")
        file = staging.files[F]
        staging.committed(file, staging.freeze(file))
        assert F not in staging.files
    assert len(list(tmp_path.glob("slot-*"))) == 1
    staging.empty_log()
    assert (tmp_path / "log").stat().st_size == 0


def test_slots_do_not_leak_the_bytes_of_the_file_before(staging: Staging) -> None:
    write(staging, F, 0, b"secret" * 100)
    file = staging.files[F]
    staging.committed(file, staging.freeze(file))
    write(staging, G, 300, b"x")
    assert seen(staging, G, b"") == b"\0" * 300 + b"x"
    assert sent(staging.freeze(staging.files[G]), b"") == b"\0" * 300 + b"x"


def test_only_appends_make_an_append(staging: Staging) -> None:
    write(staging, F, 0, b"one", base=10, append=True)
    write(staging, F, 0, b"two", append=True)
    file = staging.files[F]
    (layer,) = staging.freeze(file)
    assert (layer.append, list(layer.ranges), file.size) == (True, [(10, 16)], 16)
    write(staging, F, 0, b"three", append=True)
    write(staging, F, 0, b"four")
    assert [layer.append for layer in staging.freeze(file)] == [True, False]


def test_an_explicit_time_is_kept_until_the_next_write(staging: Staging) -> None:
    assert not staging.set_mtime(F, 5, now_ns=9)
    write(staging, F, 0, b"x")
    assert staging.set_mtime(F, 5, now_ns=9)
    file = staging.files[F]
    assert (file.mtime_ns, file.ctime_ns) == (5, 9)
    write(staging, F, 1, b"y")
    assert file.mtime_ns == 1
    assert staging.freeze(file)[0].set_mtime is None


def test_a_write_that_finds_no_space_changes_nothing(staging: Staging) -> None:
    write(staging, F, 0, b"kept")
    with pytest.raises(TooLarge):
        write(staging, F, (1 << 63) - 2, b"x")
    assert seen(staging, F, b"") == b"kept"
    with pytest.raises(TooLarge):
        write(staging, G, (1 << 63) - 2, b"x")
    assert G not in staging.files


# ---- the log


def test_the_log_reads_back_what_happened(staging: Staging, tmp_path: Path) -> None:
    transaction = Transaction(TxnNumber(1), [make(F, b"f"), text(F, 0, b"body")])
    write(staging, F, 3, b"body")
    write(staging, F, 0, b"more", append=True)
    truncate(staging, F, 2)
    file = staging.files[F]
    layers = staging.freeze(file)
    staging.log_submitted(transaction)
    staging.log_withdrawn(TxnNumber(1))
    staging.committed(file, layers)
    assert list(read_staging_log(tmp_path / "log")) == [
        Staged(F, 0, 3, 4, False),
        Staged(F, 0, 7, 4, False),
        Cut(F, 2),
        Frozen(F),
        Submitted(transaction),
        Withdrawn(TxnNumber(1)),
        Forgotten(F),
    ]


def test_a_torn_last_record_is_ignored_wherever_it_is_torn(tmp_path: Path) -> None:
    log = StagingLog(tmp_path / "log")
    log.append(Cut(F, 1))
    whole = log.size
    log.append(Staged(F, 0, 0, 100, False))
    body = (tmp_path / "log").read_bytes()
    for length in range(whole, len(body)):
        (tmp_path / "torn").write_bytes(body[:length])
        assert list(read_staging_log(tmp_path / "torn")) == [Cut(F, 1)]
    (tmp_path / "torn").write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    assert list(read_staging_log(tmp_path / "torn")) == [Cut(F, 1)]
    log.close()


def left(directory: Path) -> tuple[list[Transaction], dict[Ino, list[object]]]:
    """What a recovery reads in the log: the transactions to send again, and what is staged of each file besides."""
    over = LeftOver()
    for record in read_staging_log(directory / "log"):
        over.take(record)
    over.finish()
    files = {
        ino: [({slot: list(ranges) for slot, ranges in one.slots.items()}, one.cut, one.grown, one.append) for one in each]
        for ino, each in over.files.items()
    }
    return list(over.submitted.values()), files


@pytest.mark.parametrize("answered", [True, False], ids=["under way", "given up"])
def test_a_long_log_is_written_anew_and_says_the_same(
    staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    transaction = Transaction(TxnNumber(1), [text(F, 0, b"sent")])
    write(staging, F, 0, b"sent")
    layer = staging.freeze(staging.files[F])[0]
    staging.log_submitted(transaction)
    layer.pending, layer.shown = Pending(transaction, [], Position(2), 4), answered
    write(staging, F, 10, b"newer")
    truncate(staging, F, 12)
    write(staging, G, 0, b"one", append=True)
    staging.freeze(staging.files[G])
    for _ in range(100):
        write(staging, G, 3, b"again and again")
    before, size = left(tmp_path), staging.log.size
    staging.compact_log([transaction])
    assert staging.log.size == size, "a short log is left alone"
    monkeypatch.setattr("agentfs.workspace.staging.LOG_MAX", 1)
    staging.compact_log([transaction])
    assert staging.log.size < size
    assert left(tmp_path) == before
    assert before[0] == [transaction]
    write(staging, F, 0, b"goes on")
    assert left(tmp_path) != before


def test_a_log_goes_on_behind_what_another_wrote(tmp_path: Path) -> None:
    for size in range(3):
        log = StagingLog(tmp_path / "log")
        log.append(Cut(F, size))
        log.close()
    assert list(read_staging_log(tmp_path / "log")) == [Cut(F, 0), Cut(F, 1), Cut(F, 2)]


def test_a_log_goes_on_behind_a_torn_record(tmp_path: Path) -> None:
    """A mount that recovers appends to the log that it found: what it writes must be readable if it is killed in its turn."""
    log = StagingLog(tmp_path / "log")
    log.append(Cut(F, 1))
    log.append(Staged(F, 0, 0, 100, False))
    log.close()
    os.truncate(tmp_path / "log", log.size - 3)
    again = StagingLog(tmp_path / "log")
    again.append(Frozen(F))
    again.close()
    assert list(read_staging_log(tmp_path / "log")) == [Cut(F, 1), Frozen(F)]
