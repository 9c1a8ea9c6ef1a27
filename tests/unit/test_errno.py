"""Every error of the tree has an errno, and the table has nothing else."""

import errno
import inspect

from agentfs.fuse.errno import ERRNO, errno_of
from agentfs.model import errors


def every_error() -> set[type[errors.AgentfsError]]:
    classes = vars(errors).values()
    return {each for each in classes if inspect.isclass(each) and issubclass(each, errors.AgentfsError)}


def test_every_error_has_an_errno() -> None:
    assert set(ERRNO) == every_error()


def test_no_error_means_success_or_an_interrupt() -> None:
    # 512 and above are the kernel's own and must not reach a program.
    assert all(0 < number < 512 and number in errno.errorcode for number in ERRNO.values())


def test_an_error_is_found_by_its_class() -> None:
    assert errno_of(errors.NotEmpty("the directory has entries")) == errno.ENOTEMPTY
