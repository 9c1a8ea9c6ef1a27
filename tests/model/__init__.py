"""The same generated operations on a mount and on tmpfs, compared after every step."""
