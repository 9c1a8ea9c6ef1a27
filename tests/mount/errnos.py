"""What tests expect of a system call that must fail."""

import contextlib
import errno
from collections.abc import Iterator


@contextlib.contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """Expect an OSError with exactly that errno, or with one of those."""
    wanted = " or ".join(errno.errorcode[number] for number in numbers)
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise AssertionError(f"failed with {error}, wanted {wanted}") from error
        return
    raise AssertionError(f"did not fail, wanted {wanted}")


@contextlib.contextmanager
def may_fail(*numbers: int) -> Iterator[None]:
    """Let the block succeed, or end with one of those errnos."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
