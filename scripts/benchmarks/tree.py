"""The trial `tree`: what is done with a source tree, from unpacking to removing it, by plain tools."""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scripts.benchmarks.passthrough import PASSTHROUGH
from scripts.benchmarks.peers import RCLONE, S3FS
from scripts.benchmarks.race import Race, removed, run
from scripts.benchmarks.series import Aim, Findings
from scripts.benchmarks.sources import NEEDLE, Source, source
from scripts.benchmarks.subject import Subject
from scripts.benchmarks.subjects import Cast
from scripts.benchmarks.workspaces import AGENTFS, OVER_S3
from scripts.benchmarks.yard import Yard

UNPACK, COMMIT, REMOVE = "unpack", "git init + add + commit", "rm -rf"
LIST, SEARCH, STATUS, IMPORT = "ls -lR", "grep -r", "git status", "import"
HOT, COLD = ", hot", ", cold"

REQUESTS_BOUND = 100
FASTER_COLD_SEARCH, FASTER_UNPACK = 10, 5

_GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}
_GIT_OPTIONS = ("-c", "safe.directory=*", "-c", "gc.auto=0", "-c", "init.defaultBranch=main")


class Tree:
    """The archive is not compressed: tar only writes. Everything is done below one directory a round, which goes at its end."""

    name = "tree"
    about = "the source of Django 5.2, 10,116 entries (--smoke: some 80), worked on by tar, ls, grep, git and Python"
    rounds = 3
    needs_s3 = False

    def run(self, yard: Yard, rounds: int) -> Findings:
        """Hot: done for the second time at least. Cold: mounted anew just before, with an empty cache directory."""
        unpacked = source(yard)
        cast = Cast(yard)
        race = Race(yard, cast.subjects)
        for number in race.rounds(rounds):
            _work(race, unpacked, f"r{number}")
        notes = (f"tree: {unpacked.about}, {unpacked.entries} entries", *cast.absent, *race.notes)
        return Findings(self.name, (), tuple(_aims(race)), race.ledger.figures(), tuple(race.costs), notes)


def _work(race: Race, unpacked: Source, directory: str) -> None:
    def root(subject: Subject) -> Path:
        return subject.path / directory / unpacked.root

    def listed(subject: Subject) -> partial[None]:
        return partial(list_all, root(subject), unpacked.listed)

    def searched(subject: Subject) -> partial[bytes]:
        return partial(run, ["grep", "-rl", NEEDLE, str(root(subject))], {}, unpacked.found)

    def imported(subject: Subject) -> partial[bytes]:
        environment = {"PYTHONPATH": str(root(subject)), "PYTHONSAFEPATH": "1"}
        return partial(run, [sys.executable, "-c", unpacked.program], environment, None)

    def status(subject: Subject) -> partial[bytes]:
        return partial(run, ["git", *_GIT_OPTIONS, "-C", str(root(subject)), "status", "--porcelain"], _GIT, 0)

    race.step(UNPACK, lambda subject: partial(unpack, unpacked.archive, subject.path / directory), durable=True)
    race.rest("background work after it")
    race.step(LIST + HOT, listed, warm=True)
    race.step(SEARCH + HOT, searched, warm=True)
    race.make_cold()
    race.step(LIST + COLD, listed)
    race.make_cold()
    race.step(SEARCH + COLD, searched)
    race.make_cold()
    # What is compiled is written beside it, and left out of the repository.
    race.step(f"{IMPORT}, first", imported)
    race.step(IMPORT + HOT, imported, warm=True)
    race.step(COMMIT, lambda subject: partial(commit, root(subject)), durable=True)
    race.step(STATUS + HOT, status, warm=True)
    race.make_cold()
    race.step(STATUS + COLD, status)
    race.step(REMOVE, lambda subject: removed(subject.path / directory), durable=True)


def unpack(archive: Path, directory: Path) -> None:
    """tar -x into a new directory."""
    directory.mkdir()
    run(["tar", "-C", str(directory), "-xf", str(archive)], {}, None)


def list_all(root: Path, listed: int) -> None:
    """ls -lR, which must show all of it."""
    printed = run(["ls", "-lR", str(root)], {}, None)
    # Only lines about entries begin with a type.
    found = sum(line[:1] in (b"-", b"d", b"l") for line in printed.splitlines())
    if found < listed:
        raise RuntimeError(f"{found} of {listed} entries are listed")


def commit(root: Path) -> None:
    """Make a repository of a tree."""
    git = ["git", *_GIT_OPTIONS, "-C", str(root)]
    run([*git, "init", "--quiet"], _GIT, None)
    (root / ".git" / "info").mkdir(exist_ok=True)
    (root / ".git" / "info" / "exclude").write_text("__pycache__/\n")
    run([*git, "add", "--all"], _GIT, None)
    run([*git, "commit", "--quiet", "--message", "all of it"], _GIT, None)


def _aims(race: Race) -> Iterator[Aim]:
    ledger = race.ledger
    for what in (UNPACK, COMMIT, REMOVE, LIST + HOT, STATUS + HOT, SEARCH + HOT, IMPORT + HOT):
        yield from ledger.beside(what, AGENTFS, PASSTHROUGH, at_most=1)
    for peer in (RCLONE, S3FS):
        yield from ledger.beside(SEARCH + COLD, peer, OVER_S3, at_least=FASTER_COLD_SEARCH)
        yield from ledger.beside(f"{UNPACK}, durable", peer, OVER_S3, at_least=FASTER_UNPACK)
    for what, verb in ((SEARCH + COLD, "gets"), (UNPACK, "puts")):
        yield from race.requests_at_most(what, OVER_S3, verb, REQUESTS_BOUND)
