"""A workspace's operations in inode terms: what FUSE, and any other front, calls."""
