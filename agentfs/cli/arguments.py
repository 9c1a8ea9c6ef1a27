"""What the arguments of several commands have in common."""

from pathlib import Path
from typing import Final

import click

PATH: Final = click.Path(path_type=Path, readable=False)
"""A path that click does not look at: on a mountpoint whose daemon is gone, looking fails."""


class _Size(click.ParamType[int]):
    """A number of bytes, such as `10G`."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes. Raises Invalid."""
        from agentfs.cli.amounts import parse_bytes

        return parse_bytes(str(value))


SIZE: Final = _Size()


class _Span(click.ParamType[int]):
    """A span of time, such as `30d`, in seconds."""

    name = "span"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds; 0 is for ever. Raises Invalid."""
        from agentfs.cli.amounts import parse_span

        return parse_span(str(value))


SPAN: Final = _Span()
