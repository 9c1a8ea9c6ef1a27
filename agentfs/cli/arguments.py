"""What the arguments of several commands have in common."""

from pathlib import Path
from typing import Final

import click

PATH: Final = click.Path(path_type=Path, readable=False)
"""A path that click does not look at: on a mountpoint whose daemon is gone, looking fails."""
