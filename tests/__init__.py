"""Every test of agentfs, from single functions to real mounts."""
