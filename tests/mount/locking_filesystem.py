"""A filesystem of one file that asks whoever started it what to answer to lock requests; run as a program by test_companion.

It mounts on its first argument. Each line of its output is a JSON object about what the companion told it; each line of its
input is a call: `answer TOKEN ERRNO` or `answer_test TOKEN KIND FIRST LAST PID`. It unmounts at the end of its input.
Its second argument says how the companion is loaded: first, as agentfs does, or late, after pyfuse3.
"""

import errno
import faulthandler
import importlib
import importlib.util
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import trio

LATE = sys.argv[2] == "late"
if LATE:
    import pyfuse3

    place = importlib.util.find_spec("agentfs").submodule_search_locations[0]
    where = Path(place, "fuse", "_companion.abi3.so")
    companion: Any = importlib.util.module_from_spec(importlib.util.spec_from_file_location("_companion", where))
else:
    companion = importlib.import_module("agentfs.fuse.companion")
    import pyfuse3

FILE = 2
CONTENT = b"content"


def say(what: str, **fields: object) -> None:
    os.write(1, (json.dumps({"what": what, **fields}) + "\n").encode())


RAISES, AT_ONCE, WHEN_INTERRUPTED = 13, 14, 15
"""Bytes whose locks the handlers treat in their own way: raise, grant at once, answer from within `interrupted`."""


class Asking:
    """Lock handlers that pass every question on."""

    def __init__(self) -> None:
        self.hasty: set[int] = set()

    def lock(self, request: Any) -> None:
        say("lock", **request._asdict())
        if request.first == request.last == RAISES:
            raise LookupError("the handler of lock raised, as the test wants")
        if request.first == request.last == AT_ONCE:
            companion.answer(request.token, 0)
        if request.first == request.last == WHEN_INTERRUPTED:
            self.hasty.add(request.token)

    def test(self, request: Any) -> None:
        say("test", **request._asdict())

    def interrupted(self, token: int) -> None:
        say("interrupted", token=token)
        if token in self.hasty:
            companion.answer(token, errno.EINTR)


class OneFile(pyfuse3.Operations):
    """`/file`, whose handles are numbered from 1."""

    opened = 0

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def getattr(self, inode: int, ctx: Any = None) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o666 if inode == FILE else stat.S_IFDIR | 0o755
        entry.st_size = len(CONTENT)
        return entry

    async def open(self, inode: int, flags: int, ctx: Any = None) -> Any:
        self.opened += 1
        return pyfuse3.FileInfo(fh=self.opened)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return CONTENT[offset : offset + size]

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        return len(data)

    async def getxattr(self, inode: int, name: bytes, ctx: Any = None) -> bytes:
        say("getxattr", name=name.decode())
        return b"value"

    async def flush(self, fh: int) -> None:
        say("flush", handle=fh, owner=companion.flush_owner())

    async def release(self, fh: int) -> None:
        say("release", handle=fh, owner=companion.release_owner())


async def obey(scope: trio.CancelScope) -> None:
    """Do what the input says until it ends."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        text = b""
        while data := await stream.receive_some():
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                name, *numbers = line.decode().split()
                try:
                    getattr(companion, name)(*map(int, numbers))
                    say("answered", error=None)
                except AssertionError as error:
                    say("answered", error=str(error))
    scope.cancel()


async def serve(mountpoint: str) -> None:
    pyfuse3.init(OneFile(), mountpoint, {"fsname=probe", "subtype=agentfs", "default_permissions"})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main, 1, 20)
            await trio.to_thread.run_sync(os.stat, mountpoint)
            say("ready", in_effect=companion.is_in_effect())
            nursery.start_soon(obey, nursery.cancel_scope)
    finally:
        pyfuse3.close(unmount=True)
    for token in map(int, sys.argv[3:]):
        companion.answer(token, 0)
    say("ended", in_effect=companion.is_in_effect())


faulthandler.register(signal.SIGUSR1)
if not LATE:
    companion.install(Asking())
    companion.answer_absent([b"user.absent", b"security.capability"])
trio.run(serve, sys.argv[1])
