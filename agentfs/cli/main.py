"""The command group: finds a command's file by its name, and turns every failure into one line and an exit code."""

import importlib
from typing import Final

import click

from agentfs import __version__
from agentfs.cli.failures import INTERRUPTED, MEANINGS, USAGE, exit_code_of, line_of, operating_error

_COMMANDS: Final[dict[str, str]] = {
    "create": "agentfs.cli.create",
    "mount": "agentfs.cli.mount",
    "umount": "agentfs.cli.umount",
    "unmount": "agentfs.cli.umount",
    "status": "agentfs.cli.status",
    "replicas": "agentfs.cli.replicas",
    "warm": "agentfs.cli.warm",
    "cache": "agentfs.cli.cache",
    "locks": "agentfs.cli.locks",
    "log": "agentfs.cli.log",
    "events": "agentfs.cli.events",
    "fsck": "agentfs.cli.fsck",
    "recover": "agentfs.cli.recover",
    "doctor": "agentfs.cli.doctor",
}
"""Each command and the module whose `command` it is. A module is imported when its command is asked for."""

_EXIT_CODES_HELP: Final = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in MEANINGS.items())


class CommandGroup(click.Group):
    """Commands by name, imported one at a time so that each starts quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which a newcomer needs them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None if there is none of that name."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name]).command
        return command


@click.command(
    cls=CommandGroup,
    invoke_without_command=True,
    epilog=_EXIT_CODES_HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="agentfs")
@click.pass_context
def group(context: click.Context) -> None:
    """A local directory that is a remote, replicated workspace."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code. Errors go to stderr as one line."""
    try:
        result = group.main(arguments, prog_name="agentfs", standalone_mode=False)
    except click.ClickException as error:
        return _refuse(_usage_line(error), USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _refuse("interrupted", INTERRUPTED)
    except Exception as error:
        known = operating_error(error)
        if known is None:
            raise
        return _refuse(line_of(known), exit_code_of(known))
    except BaseExceptionGroup as error:
        # Ctrl-C that came while a nursery was open.
        if error.subgroup(KeyboardInterrupt) is None:
            raise
        return _refuse("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _refuse(line: str, code: int) -> int:
    click.echo(f"agentfs: {line}", err=True)
    return code


def _usage_line(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    line = " ".join(error.format_message().split())
    return f"{line.rstrip('.')} (see `{context.command_path} --help`)" if context else line
