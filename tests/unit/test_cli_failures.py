"""Every error has an exit code, and reaches the user as one line."""

import errno
from pathlib import Path

import pytest

from agentfs.cli.failures import EXIT_CODES, INTERRUPTED, MEANINGS, exit_code_of, from_os_error, line_of, operating_error
from agentfs.cli.main import group, main
from agentfs.model import errors
from agentfs.model.errors import AgentfsError


def every_error() -> list[type[AgentfsError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AgentfsError)]
    assert len(found) > 20
    return found


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_a_documented_exit_code(kind: type[AgentfsError]) -> None:
    assert EXIT_CODES[kind] in MEANINGS
    assert exit_code_of(kind("x")) != 0


def test_no_error_is_in_the_table_that_does_not_exist() -> None:
    assert set(EXIT_CODES) == set(every_error())


def test_a_message_of_several_lines_becomes_one() -> None:
    assert line_of(errors.Invalid("first\n  second")) == "first second"
    assert line_of(errors.Busy()) == "Busy"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, errors.NotFound),
        (errno.EACCES, errors.Denied),
        (errno.ENOSPC, errors.NoSpace),
        (errno.EDQUOT, errors.NoSpace),
    ],
)
def test_operating_system_errors_name_their_file(number: int, kind: type[AgentfsError]) -> None:
    found = from_os_error(OSError(number, "reason", "/some/file"))
    assert type(found) is kind
    assert str(found) == "/some/file: reason"


def test_errors_of_a_nursery_are_operating_errors_only_if_all_are() -> None:
    known = ExceptionGroup("x", [ExceptionGroup("y", [errors.NoSpace("full")]), errors.Busy("busy")])
    assert isinstance(operating_error(known), errors.NoSpace)
    assert operating_error(ExceptionGroup("x", [errors.NoSpace("full"), ValueError()])) is None
    assert operating_error(ValueError()) is None


def test_usage_errors_are_one_line_with_code_two(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["frob"]) == 2
    assert main(["mount", "demo"]) == 2
    assert main(["create"]) == 2
    assert main(["locks", "break"]) == 2
    assert main(["locks", "a", "b"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("agentfs: ") and "--help" in line for line in lines)


def test_ctrl_c_is_one_line_wherever_it_comes(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for raised in (KeyboardInterrupt(), BaseExceptionGroup("x", [BaseExceptionGroup("y", [KeyboardInterrupt()])])):

        def interrupted(*arguments: object, raised: BaseException = raised, **options: object) -> None:
            raise raised

        monkeypatch.setattr(group, "main", interrupted)
        assert main([]) == INTERRUPTED
    assert capfd.readouterr().err == "agentfs: interrupted\n" * 2


def test_an_unknown_workspace_is_one_line_that_says_how_to_mend_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "--root", str(tmp_path), "nope", str(tmp_path)]) == 3
    shown = capfd.readouterr().err
    assert shown.count("\n") == 1
    assert "agentfs create nope" in shown


def test_a_lease_ttl_out_of_bounds_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "--lease-ttl", "0.5", "demo", str(tmp_path)]) == 2
    assert capfd.readouterr().err == "agentfs: a lease TTL of 0.5 s: it can be 1 to 3600 s\n"


@pytest.mark.parametrize(
    "command",
    [
        *("", "create", "mount", "umount", "unmount", "status", "locks", "locks break", "log", "events", "fsck", "doctor"),
        *("replicas", "replicas list", "replicas add", "replicas remove", "replicas scrub", "warm", "cache", "cache clear"),
    ],
)
def test_every_command_has_help(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert "Usage: agentfs" in capfd.readouterr().out
