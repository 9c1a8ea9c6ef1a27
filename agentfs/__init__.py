"""agentfs: a local directory that is a remote, replicated workspace."""

__version__ = "0.1.0"
