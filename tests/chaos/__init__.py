"""Tests of real mounts over real S3 servers to which things happen."""
