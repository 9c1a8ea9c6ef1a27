"""Values only: ids, inodes, extents, changes, entries, errors and their encoding."""
