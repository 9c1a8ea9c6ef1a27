"""Real packages from the package index that pip is configured for, kept in the user's cache between runs."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "agentfs-tests"


@functools.cache
def pip() -> tuple[str, ...]:
    """A command that runs pip: this interpreter's, or one in a virtualenv of its own where this one has none."""
    own = (sys.executable, "-m", "pip")
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    place = CACHE / "pip"
    if not (place / "bin" / "pip").exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True, capture_output=True)
    return (str(place / "bin" / "python"), "-m", "pip")


def fetched(requirement: str, pattern: str, *options: str) -> Path:
    """The file of a package, downloaded once; skips the test where nothing can be downloaded."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not list(CACHE.glob(pattern)):
        command = [*pip(), "download", "--quiet", "--no-deps", "--dest", str(CACHE), *options, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{requirement} cannot be downloaded: {done.stderr.strip()[-300:]}")
    return next(iter(CACHE.glob(pattern)))


def django() -> Path:
    """The source archive of Django 5.2."""
    return fetched("Django==5.2", "[Dd]jango-5.2.tar.gz", "--no-binary=:all:")


def six() -> Path:
    """The wheel of a small package without dependencies."""
    return fetched("six", "six-*.whl", "--only-binary=:all:")
