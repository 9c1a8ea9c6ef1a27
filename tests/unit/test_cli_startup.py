"""The command starts without the modules that only a mount needs."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from agentfs.cli.main import main
code = main(sys.argv[1:])
print(sorted({"pyfuse3", "trio", "rich", "sqlite3", "structlog"} & set(sys.modules)), code, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["mount", "--help"], ["mount"]])
def test_help_and_the_list_of_mounts_import_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[] 0"
