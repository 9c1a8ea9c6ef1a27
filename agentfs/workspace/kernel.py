"""What the workspace asks of the kernel above it: to forget what others have changed."""

from typing import Protocol

from agentfs.model.ids import Ino
from agentfs.state.touched import Touched


class Kernel(Protocol):
    """The kernel's caches of one mount. Invalidations are done behind the callers, in the order they were asked for."""

    def changed(self, rows: Touched) -> None:
        """These rows are not what the kernel was told last: it is to ask again. A hot path; returns at once."""
        ...

    def is_changing(self, ino: Ino) -> bool:
        """Whether the kernel may still hold bytes or attributes from before the last change that `changed` was told of.

        A hot path.
        """
        ...

    @property
    def is_settled(self) -> bool:
        """Whether `settled` would return at once. A hot path."""
        ...

    async def settled(self) -> None:
        """Return once the kernel has forgotten everything that `changed` was told of before this call."""
        ...

    async def write_back(self, ino: Ino) -> None:
        """Have the kernel hand over what processes wrote to mappings of the file, and forget its pages."""
        ...


class NoKernel:
    """For a workspace that nobody mounted: simulations, recovery, tests of the layers below FUSE."""

    def changed(self, rows: Touched) -> None:
        pass

    def is_changing(self, ino: Ino) -> bool:
        return False

    @property
    def is_settled(self) -> bool:
        return True

    async def settled(self) -> None:
        pass

    async def write_back(self, ino: Ino) -> None:
        pass
