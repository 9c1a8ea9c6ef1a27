"""The kernel's side: FUSE requests in, workspace calls out."""

# Before any module of this package imports pyfuse3: see there.
import agentfs.fuse.companion  # noqa: F401
