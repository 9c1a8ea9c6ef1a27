"""Starts the command line: `agentfs` and `python -m agentfs`."""

import sys

from agentfs.cli.main import main


def run() -> None:
    """Run the command that `sys.argv` names and exit with its code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
