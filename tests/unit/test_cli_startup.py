"""The command starts without the modules that only a mount needs, and a mount without those that only its replicas need."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from agentfs.cli.main import main
code = main(sys.argv[1:])
heavy = {"pyfuse3", "trio", "rich", "sqlite3", "structlog", "boto3", "botocore"}
print(sorted(heavy & set(sys.modules)), code, file=sys.stderr)
"""

STACK = """
import os, sys
from pathlib import Path
import trio
from agentfs.cli.serve import run_daemon
from agentfs.cli.stack import open_source, open_stack
from agentfs.cli.workspace_source import source_of
from agentfs.runtime import SystemRuntime
from agentfs.workspace.settings import Settings

async def run():
    root, settings, runtime = Path(sys.argv[1]), Settings(host="h", pid=1), SystemRuntime()
    async with (
        open_source(source_of("demo", root), runtime=runtime) as opened,
        open_stack(opened, cache_dir=root / "cache", settings=settings, runtime=runtime) as workspace,
    ):
        assert [state.state for state in workspace.status().replicas] == ["up", "up"]

trio.run(run)
print(sorted({"boto3", "botocore", "psycopg"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["mount", "--help"], ["mount"], ["replicas", "--help"]])
def test_help_and_the_list_of_mounts_import_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[] 0"


def test_a_mount_without_s3_does_not_import_its_library(tmp_path: Path) -> None:
    create = [sys.executable, "-m", "agentfs", "create", "demo", "--root", str(tmp_path)]
    subprocess.run(create, capture_output=True, check=True)
    done = subprocess.run([sys.executable, "-c", STACK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
