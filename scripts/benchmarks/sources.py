"""The tree that is unpacked: Django's source, which pip fetches once, or one that is made, of the same shape."""

import gzip
import hashlib
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.yard import Yard

DJANGO = "django==5.2"
FILE_NAME = "Django-5.2.tar.gz"
DIGEST = "1a47f7a7a3d43ce64570d350e008d2949abe8c7e21737b351b6a1611277c6d89"
"""SHA-256 of what PyPI has under that name."""

FETCH_SECONDS = 300

NEEDLE = "ImproperlyConfigured"
"""What grep looks for."""

_IMPORTED = "django.db.models, django.forms, django.template, django.contrib.admin, django.contrib.auth, django.views.generic"
# What Django needs and the source does not bring is replaced by mocks: its own modules are what is imported.
_IMPORT_DJANGO = (
    "import sys; from unittest.mock import MagicMock\n"
    "sys.modules.update({name: MagicMock() for name in ('asgiref', 'asgiref.local', 'asgiref.sync', 'sqlparse')})\n"
    f"from django.conf import settings; settings.configure()\nimport {_IMPORTED}\n"
)

FILES, SMOKE_FILES = 6869, 60
FILES_A_DIRECTORY = 2
"""How many files there are in Django's source, and for each directory."""

PARENTS = 300
"""How many directories have others in them, so that the tree is about as deep."""

SIZE, SIZE_MAX = (7.8, 1.4), 360 << 10
"""The mean and the deviation of the logarithm of a file's size, and the most bytes."""

IMPORTED = 200
"""How many modules of a tree that was made are imported."""


@dataclass(frozen=True, slots=True)
class Source:
    """An archive, not compressed, of one directory called `root`."""

    archive: Path
    root: str
    entries: int
    """Files and directories, `root` among them."""

    listed: int
    """How many of them `ls -R` shows: not the root, nor what begins with a dot."""

    found: int
    """In how many files the needle is."""

    program: str
    """A Python program that imports packages of the tree, run with the root on the path."""

    about: str


def source(yard: Yard) -> Source:
    """Django's where it can be had, or else one that is made."""
    if not yard.is_smoke and (packed := _fetched()):
        return _django(packed, yard.directory("source"))
    return _made(yard.directory("source"), yard.scaled(FILES, SMOKE_FILES))


def cache_directory() -> Path:
    """Where what was fetched is kept from run to run, outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentfs-bench"


def _fetched() -> Path | None:
    """Django's source, from the cache or from PyPI; nothing where there is no network."""
    kept = cache_directory() / FILE_NAME
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        if reason := _fetch(kept):
            print(f"{DJANGO} cannot be fetched ({reason}): a tree is made in its place\n", flush=True)
            return None
    digest = hashlib.sha256(kept.read_bytes()).hexdigest()
    if digest != DIGEST:
        raise OSError(f"{kept} has the SHA-256 {digest}, not {DIGEST}: remove it")
    return kept


def _fetch(kept: Path) -> str:
    """Have pip download it; why that failed, or nothing."""
    pip = shutil.which("pip") or shutil.which("pip3")
    if pip is None:
        return "there is no pip"
    # Not a file that is there in part, for whoever comes after a run that was ended.
    with tempfile.TemporaryDirectory(dir=kept.parent) as draft:
        command = [pip, "download", "--quiet", "--no-binary", ":all:", "--no-deps", "--dest", draft, DJANGO]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"pip took more than {FETCH_SECONDS} s"
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"pip ended with code {done.returncode}"])[-1]
        Path(draft, FILE_NAME).replace(kept)
    return ""


def _django(packed: Path, directory: Path) -> Source:
    archive = directory / "django.tar"
    with gzip.open(packed) as compressed, archive.open("wb") as file:
        shutil.copyfileobj(compressed, file)
    return _described(archive, _IMPORT_DJANGO, "the source of Django 5.2")


def _made(directory: Path, files: int) -> Source:
    """Packages within packages, with text that compresses as programs do, and a needle in one file of a hundred."""
    chance = random.Random(52)
    root = directory / "made-1.0"
    packages, modules = [root / "package"], []
    packages[0].mkdir(parents=True)
    (packages[0] / "__init__.py").touch()
    words = ["".join(chance.choices("etaoinshrdlu_", k=chance.randint(2, 12))) for _ in range(3000)]
    for number in range(1, files):
        if number % FILES_A_DIRECTORY == 0:
            packages.append(chance.choice(packages[:PARENTS]) / f"p{number}")
            packages[-1].mkdir()
            (packages[-1] / "__init__.py").touch()
            continue
        # Log-normal, as sizes of source files are: many small ones, and a few of some hundred KiB.
        size = min(int(chance.lognormvariate(*SIZE)), SIZE_MAX)
        text = [f"# {' '.join(chance.choices(words, k=10))}" for _ in range(size // 70 + 1)]
        if number % 100 == 1:
            text.append(f"# {NEEDLE}")
        path = packages[-1] / f"m{number}.py"
        path.write_text("\n".join(text) + "\n")
        modules.append(".".join(path.relative_to(root).with_suffix("").parts))
    archive = directory / "made.tar"
    subprocess.run(["tar", "-C", directory, "-cf", archive, root.name], check=True)
    shutil.rmtree(root)
    imports = "".join(f"import {module}\n" for module in chance.sample(modules, min(IMPORTED, len(modules))))
    return _described(archive, imports, f"a tree of {files} files, made")


def _described(archive: Path, program: str, about: str) -> Source:
    found = 0
    with tarfile.open(archive) as members:
        paths = [Path(name) for name in members.getnames()]
        for member in members.getmembers():
            content = members.extractfile(member) if member.isfile() else None
            found += content is not None and NEEDLE.encode() in content.read()
    listed = sum(not any(part.startswith(".") for part in path.parts) for path in paths) - 1
    return Source(archive, paths[0].parts[0], len(paths), listed, found, program, about)
