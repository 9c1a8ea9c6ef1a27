"""Tests of a real mount with real system calls and real tools."""
