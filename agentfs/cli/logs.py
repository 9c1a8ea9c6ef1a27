"""The daemon's log: JSON lines in a file that is rotated by size, never file contents or secrets."""

import json
import logging
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from agentfs.runtime import Runtime

LOG_MAX: Final = 16 << 20
"""Bytes in a log file; beyond, it becomes `NAME.1` and a new one begins."""


class RotatingLog:
    """A log file. It is also the daemon's stdout and stderr, so that what a crashing library prints lands there."""

    def __init__(self, path: Path, *, size_max: int = LOG_MAX, take_over: bool = False) -> None:
        self._path = path
        self._size_max = size_max
        self._take_over = take_over
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._open()

    def write(self, text: str) -> None:
        """Append one line, rotating first if the file is full."""
        if self._size >= self._size_max:
            self.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._open()
        data = text.encode(errors="backslashreplace")
        os.write(self._fd, data)
        self._size += len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._take_over:
            os.dup2(self._fd, 1)
            os.dup2(self._fd, 2)


class _Line:
    """structlog's idea of a logger: every level writes a line."""

    def __init__(self, log: RotatingLog | None) -> None:
        self._log = log

    def msg(self, line: str) -> None:
        """Write a rendered line."""
        if self._log is None:
            sys.stderr.write(line + "\n")
        else:
            self._log.write(line + "\n")

    debug = info = warning = error = critical = exception = log = msg


def open_log(path: Path | None, *, runtime: Runtime, take_over: bool) -> RotatingLog | None:
    """Send structlog's and the libraries' warnings to `path`, or to stderr without one. Returns what is to be closed."""
    log = RotatingLog(path, take_over=take_over) if path else None

    def stamp(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        now_ns = runtime.now_ns()
        moment = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return {"time": f"{moment}.{now_ns // 1_000_000 % 1000:03}Z", **event}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            stamp,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _Line(log),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)
    return log


@contextmanager
def logging_to(path: Path, *, runtime: Runtime) -> Iterator[None]:
    """Have a command's session log to `path`, beside the logs of mounts, and nowhere afterwards."""
    log = open_log(path, runtime=runtime, take_over=False)
    try:
        yield
    finally:
        structlog.reset_defaults()
        logging.basicConfig(handlers=[logging.NullHandler()], force=True)
        if log is not None:
            log.close()


def _render(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    return json.dumps(event, default=repr)


class _Bridge(logging.Handler):
    """Passes on what libraries log through the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record as one of our own lines."""
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name)
