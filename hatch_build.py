"""The build hook: compiles `agentfs/fuse/companion.c` beside its source, for wheels and for editable installs."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE: Final = "agentfs/fuse/companion.c"
MODULE: Final = "agentfs/fuse/_companion.abi3.so"
PACKAGES: Final = "apt-get install gcc libc6-dev libfuse3-dev pkg-config python3-dev"


class CompanionHook(BuildHookInterface[Any]):
    """What hatchling runs before it packs anything."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile for a wheel, which then belongs to one platform and to every CPython from 3.11 on."""
        if self.target_name != "wheel":
            return
        compile_companion(Path(self.root))
        build_data["artifacts"].append(MODULE)
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_companion(root: Path) -> None:
    """Compile below `root`. A daemon may have the module loaded, so it is replaced as a whole, and only by another one."""
    module = root / MODULE
    draft = module.with_suffix(f".{os.getpid()}.o")
    flags = [
        "-shared",
        "-fPIC",
        "-O2",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror=implicit-function-declaration",
        f"-I{_python_headers()}",
    ]
    command = [*_compiler(), *flags, *_fuse("--cflags"), SOURCE, "-o", os.fspath(draft), *_fuse("--libs"), "-ldl"]
    try:
        if subprocess.run(command, cwd=root, check=False).returncode != 0:
            _stop(f"its compiler failed; what it may lack: {PACKAGES}")
        if not module.exists() or module.read_bytes() != draft.read_bytes():
            draft.replace(module)
    finally:
        draft.unlink(missing_ok=True)


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(command[0]) is None:
        _stop(f"it needs a C compiler, and there is no {command[0]}: {PACKAGES}")
    return command


def _python_headers() -> str:
    directory = sysconfig.get_path("include")
    if not Path(directory, "Python.h").exists():
        _stop(f"it needs Python's headers, and {directory} has none: {PACKAGES}")
    return directory


def _fuse(option: str) -> list[str]:
    if shutil.which("pkg-config") is None:
        _stop(f"it needs pkg-config: {PACKAGES}")
    asked = subprocess.run(["pkg-config", option, "fuse3"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        _stop(f"it needs libfuse's headers, and pkg-config knows no fuse3: {PACKAGES}")
    return shlex.split(asked.stdout)


def _stop(reason: str) -> None:
    sys.exit(f"agentfs compiles a companion to pyfuse3: {reason}")
