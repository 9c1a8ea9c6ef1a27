"""Setting aside: staged bytes that may not be committed any more are moved to a recovery folder, where a person can find them.

`CACHE/WORKSPACE-ID/recovered-SESSION-N/` holds `contents.json` and one sparse file for each layer of a file, with the bytes at
the offsets at which they were written. Nothing is copied: the staging files move, so that a full disk is no obstacle.
"""

import shutil
from pathlib import Path

import msgspec

from agentfs.model.ids import Ino, SessionId
from agentfs.state.tables import Tables
from agentfs.workspace.paths import path_of
from agentfs.workspace.seat import Seat
from agentfs.workspace.staging import DirtyFile, Staging
from agentfs.workspace.staging_log import disk_error

CONTENTS = "contents.json"


class SetAsidePiece(msgspec.Struct, frozen=True):
    """One layer of a file: `file` in the folder holds `ranges` (offset, end) of it; oldest first, a later one hides an earlier.

    `cut`: before that the file was truncated to so many bytes; `grown`: after that its size was set to so many.
    """

    file: str | None
    ranges: list[tuple[int, int]]
    cut: int | None
    grown: int | None


class SetAsideFile(msgspec.Struct, frozen=True):
    """What was staged of one file of the workspace, whose size would have been `size` bytes."""

    path: str
    inode: int
    size: int
    pieces: list[SetAsidePiece]


def set_aside(seat: Seat, staging: Staging, tables: Tables, inos: list[Ino], session: SessionId) -> Path:
    """Move what is staged of these files to a new recovery folder, and return it; the files must then be discarded.

    Raises NoSpace or Unavailable, and then nothing that is staged has moved.
    """
    folder = seat.recovery_folder(session)
    try:
        folder.mkdir(mode=0o700)
        files = [_describe(tables, staging.files[ino]) for ino in inos]
        (folder / CONTENTS).write_bytes(msgspec.json.format(msgspec.json.encode(files)) + b"\n")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise disk_error(error) from error
    for ino in inos:
        staging.files[ino].set_aside = True
        for number, layer in enumerate(staging.files[ino].layers):
            staging.move_slot(layer, folder / _name(ino, number))
    return folder


def _describe(tables: Tables, file: DirtyFile) -> SetAsideFile:
    pieces = [
        SetAsidePiece(_name(file.ino, number) if layer.slot >= 0 else None, list(layer.ranges), layer.cut, layer.grown)
        for number, layer in enumerate(file.layers)
    ]
    return SetAsideFile(path_of(tables, file.ino), file.ino, file.size, pieces)


def _name(ino: Ino, number: int) -> str:
    return f"{ino}-{number}"
