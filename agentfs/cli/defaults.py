"""What the options of `create` and `mount` are where the command line does not say: what a file says, or the environment.

One rule for both: the option `--some-name` is the key `some-name` of a TOML file, which `--config` names, and the variable
AGENTFS_SOME_NAME. The command line wins over the file, the file over the environment. Of an option that can be repeated, a
variable has the values with spaces between them, a file has a list.
"""

import importlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from agentfs.cli.arguments import PATH
from agentfs.model.errors import Denied, Invalid, NotFound

_COMMANDS: Final = ("create", "mount")
_NOT_FOR_FILES: Final = frozenset(("config", "json", "help", "version"))


def variable_of(key: str) -> str:
    """The environment variable of an option."""
    return f"AGENTFS_{key.upper().replace('-', '_')}"


def variables() -> frozenset[str]:
    """Every variable that is an option's default."""
    return frozenset(("AGENTFS_CONFIG", *map(variable_of, _known())))


def _take(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    options = dict(_options(context.command))
    found = {key: _of_variable(option, value) for key, option in options.items() if (value := os.environ.get(variable_of(key)))}
    if path is not None:
        found |= {key: value for key, value in _of_file(path).items() if key in options}
    context.default_map = {str(options[key].name): value for key, value in found.items()}
    return path


CONFIG_OPTION: Final = click.option(
    "--config",
    type=PATH,
    envvar="AGENTFS_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_take,
    metavar="FILE",
    help="A TOML file with options by their long names. The command line wins over it, it over AGENTFS_… variables.",
)


def _options(command: click.Command) -> Iterator[tuple[str, click.Option]]:
    """The options of a command that can have a default, by their long names."""
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden:
            for text in param.opts:
                key = text.removeprefix("--")
                if text.startswith("--") and key not in _NOT_FOR_FILES:
                    yield key, param


def _known() -> dict[str, click.Option]:
    commands = (importlib.import_module(f"agentfs.cli.{name}").command for name in _COMMANDS)
    return {key: option for command in commands for key, option in _options(command)}


def _of_variable(option: click.Option, value: str) -> object:
    return value.split() if option.multiple else value


def _of_file(path: Path) -> Mapping[str, object]:
    """What a file says, by key. Raises NotFound, Denied, Invalid naming what is wrong in it."""
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"there is no file {path} to read options from") from None
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} is not readable: {error}") from error
    known = _known()
    for key, value in found.items():
        if key not in known:
            raise Invalid(f"{path}: there is no option {key!r}: there are {', '.join(sorted(known))}")
        _check(path, key, known[key], value)
    return found


def _check(path: Path, key: str, option: click.Option, value: object) -> None:
    if option.multiple:
        fits, kind = isinstance(value, list) and all(isinstance(each, str) for each in value), "a list of texts"
    elif option.is_flag:
        fits, kind = isinstance(value, bool), "true or false"
    else:
        fits, kind = isinstance(value, str | int | float) and not isinstance(value, bool), "a text or a number"
    if not fits:
        raise Invalid(f"{path}: {key} is {kind}")
