"""The companion without a mount: how it is loaded and built, and what it refuses."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from agentfs.cli.checks import run_checks
from agentfs.fuse import companion

PROJECT = Path(__file__).parents[2]


def test_pyfuse3_before_the_companion_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", "import pyfuse3, agentfs.fuse"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "agentfs.fuse must be imported before pyfuse3" in done.stderr


@pytest.mark.parametrize("module", ["agentfs.fuse.driver", "agentfs.fuse.attributes"])
def test_the_functions_that_libfuse_is_called_by_are_the_companions(module: str) -> None:
    program = f"""
import {module}, agentfs.fuse._companion as companion, ctypes, pyfuse3
class Place(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("at", ctypes.c_void_p)]
everything, place = ctypes.CDLL(None), Place()
assert everything.dladdr(everything.fuse_session_new, ctypes.byref(place))
assert place.file.decode() == companion.__file__, place.file
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_loading_leaves_the_flags_of_other_modules_alone() -> None:
    program = "import sys; before = sys.getdlopenflags(); import agentfs.fuse; assert sys.getdlopenflags() == before"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nothing_is_in_effect_without_a_mount() -> None:
    assert not companion.is_in_effect()


@pytest.mark.parametrize(
    "call", [lambda: companion.answer(2**40, 0), lambda: companion.answer_test(2**40, 0, 0, 0, 0)], ids=["lock", "test"]
)
def test_a_token_that_was_never_given_is_refused(call: Callable[[], None]) -> None:
    with pytest.raises(AssertionError, match="is not open"):
        call()


@pytest.mark.parametrize(
    ("names", "says"), [([b"n"] * 9, "more than 8 names"), ([b"n" * 256], "more than 255 bytes")], ids=["many", "long"]
)
def test_absent_names_are_bounded(names: list[bytes], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        companion.answer_absent(names)


def test_doctor_looks_at_the_companion_before_pyfuse3() -> None:
    names = [check.name for check in run_checks() if check.state == "ok"]
    assert names.index("companion") < names.index("pyfuse3")


@pytest.fixture
def hatch_build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build hook, without hatchling, which is there only while something is built."""
    parents = ["hatchling", "builders", "hooks", "plugin", "interface"]
    for depth in range(1, len(parents) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parents[:depth]), ModuleType(parents[depth - 1]))
    monkeypatch.setattr(sys.modules[".".join(parents)], "BuildHookInterface", list, raising=False)
    hook = ModuleType("hatch_build")
    exec(compile((PROJECT / "hatch_build.py").read_text(), "hatch_build.py", "exec"), hook.__dict__)
    return hook


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A project directory with nothing but the companion's source."""
    shutil.copytree(PROJECT / "agentfs/fuse", tmp_path / "agentfs/fuse", ignore=lambda _, names: {*names} - {"companion.c"})
    return tmp_path


def test_building_again_leaves_what_is_the_same(hatch_build: ModuleType, source: Path) -> None:
    hatch_build.compile_companion(source)
    module = source / hatch_build.MODULE
    before = module.stat()
    hatch_build.compile_companion(source)
    assert (module.stat().st_ino, module.stat().st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
    assert {path.name for path in module.parent.iterdir()} == {module.name, "companion.c"}


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [("CC", "no-such-cc", "there is no no-such-cc"), ("PKG_CONFIG_LIBDIR", "/nonexistent", "knows no fuse3")],
)
def test_what_building_lacks_is_named(
    hatch_build: ModuleType, source: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.delenv("PKG_CONFIG_PATH", raising=False)
    with pytest.raises(SystemExit) as caught:
        hatch_build.compile_companion(source)
    message = str(caught.value)
    assert says in message
    assert "apt-get install gcc" in message
    assert "\n" not in message
