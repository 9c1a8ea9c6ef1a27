"""How long work shows how far it is: a bar on a terminal, lines when piped, records with `--json`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import click
import msgspec

from agentfs.cli.amounts import bytes_text

Unit = Literal["bytes", "items"]

_TENTHS = 10


class Progress(Protocol):
    """Where a long piece of work tells how far it is."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` is finished; both may grow. `note` names what is being worked on."""
        ...


class _Bar:
    """A bar with amounts and the time left."""

    def __init__(self, title: str, unit: Unit) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        amount = DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn()
        self.rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            amount,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self.rich.add_task(title, total=None, note="")

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Move the bar."""
        self.rich.update(self._task, completed=done, total=total, note=note)


class _Lines:
    """A line for every tenth of the work, so that a log of the output stays short however long it takes."""

    def __init__(self, title: str, unit: Unit) -> None:
        self._title = title
        self._unit = unit
        self._tenth = -1

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Print a line if another tenth is done."""
        tenth = min(done * _TENTHS // total, _TENTHS) if total else _TENTHS
        if tenth <= self._tenth:
            return
        self._tenth = tenth
        click.echo(" ".join(part for part in (f"{self._title}: {self._amount(done, total)}", note) if part), err=True)

    def _amount(self, done: int, total: int) -> str:
        if self._unit == "bytes":
            return f"{bytes_text(done)} of {bytes_text(total)}"
        return f"{done} of {total}"


class _Records:
    """A JSON object for every step."""

    def __init__(self, title: str, unit: Unit) -> None:
        self._title = title
        self._unit = unit

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Print the step."""
        echo_json({"event": self._title, "unit": self._unit, "done": done, "total": total, "note": note})


@contextmanager
def progress(title: str, *, unit: Unit, as_json: bool) -> Iterator[Progress]:
    """Progress of the work called `title`: on stderr for people, on stdout with `as_json`."""
    if as_json:
        yield _Records(title, unit)
    elif sys.stderr.isatty():
        bar = _Bar(title, unit)
        with bar.rich:
            yield bar
    else:
        yield _Lines(title, unit)


def echo_json(value: object) -> None:
    """Print a value as one line of JSON."""
    click.echo(msgspec.json.encode(value).decode())
