"""Tests of workspaces whose mounts are on hosts of their own, with the network between them and the servers."""
