"""The mount answers what tmpfs answers, operation by operation, and the trees stay the same.

AGENTFS_MODEL_SEEDS="1 2 3" chooses the seeds, AGENTFS_MODEL_STEPS how many operations each makes.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.operations import Generator, Operation, Tree
from tests.model.tree import differences, picture
from tests.mount.conftest import Place

SEEDS = [int(seed) for seed in os.environ.get("AGENTFS_MODEL_SEEDS", "1 2 3 4 5 6").split()]
STEPS = int(os.environ.get("AGENTFS_MODEL_STEPS", "300"))


class Difference(Exception):
    """The two sides differ after that many operations."""

    def __init__(self, steps: int, what: str) -> None:
        super().__init__(what)
        self.steps = steps


@pytest.fixture(autouse=True)
def plain_umask() -> Iterator[None]:
    """Modes depend on it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def compare_trees(left: Tree, right: Tree, steps: int) -> None:
    """Raise Difference unless both hold the same."""
    if found := differences(picture(left.root), picture(right.root)):
        raise Difference(steps, "\n".join(found))


def run(operations: list[Operation], left: Tree, right: Tree) -> None:
    """Do the operations on both sides, comparing results and trees after each. Raises Difference at the first."""
    for steps, operation in enumerate(operations, start=1):
        one, two = left.perform(operation), right.perform(operation)
        if one != two:
            raise Difference(steps, f"{operation} gave {one!r}, should give {two!r}")
        compare_trees(left, right, steps)


def fresh(top: Path, name: str) -> Tree:
    """A new tree."""
    (top / name).mkdir(mode=0o755)
    return Tree(top / name)


def check(seed: int, left: Path, right: Path) -> None:
    """Fail, with the seed and the operations to do by hand, if the sides differ."""
    operations = Generator(seed).operations(STEPS)
    one, two = fresh(left, "tree"), fresh(right, "tree")
    try:
        run(operations, one, two)
    except Difference as difference:
        listed = "\n".join(
            f"{number:4} {operation}" for number, operation in enumerate(operations[: difference.steps], start=1)
        )
        print(f"{listed}\nAGENTFS_MODEL_SEEDS={seed} AGENTFS_MODEL_STEPS={difference.steps}", file=sys.stderr)
        pytest.fail(f"seed {seed}, operation {difference.steps} (mount first, tmpfs second): {difference}")
    finally:
        one.close()
        two.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_mount_answers_as_tmpfs(mounted: Place, tmpfs: Path, seed: int) -> None:
    check(seed, mounted.path, tmpfs)
    if mounted.is_mount:
        before = picture(mounted.path)
        mounted.remount()
        assert differences(picture(mounted.path), before) == []


def test_tmpfs_answers_as_tmpfs(tmpfs: Path) -> None:
    """The harness itself shows no differences where there are none."""
    (tmpfs / "left").mkdir()
    (tmpfs / "right").mkdir()
    check(SEEDS[0], tmpfs / "left", tmpfs / "right")


def test_generator_is_deterministic() -> None:
    assert Generator(5).operations(200) == Generator(5).operations(200)
    assert Generator(5).operations(200) != Generator(6).operations(200)


def test_most_operations_do_something(tmpfs: Path) -> None:
    """A generator whose operations mostly fail would compare little."""
    results = []
    for seed in range(10):
        tree = fresh(tmpfs, f"tree-{seed}")
        results += [tree.perform(operation) for operation in Generator(seed).operations(300)]
        tree.close()
    failed = [result for result in results if isinstance(result, str) and result.startswith("E")]
    assert len(failed) < len(results) / 2
    assert len(set(failed)) >= 10


def test_a_difference_is_found_with_its_step(tmpfs: Path) -> None:
    class Forgetful(Tree):
        """A filesystem whose truncate does nothing."""

        def perform(self, operation: Operation) -> object:
            return None if operation.name == "truncate" else super().perform(operation)

    left, right = Forgetful(fresh(tmpfs, "left").root), fresh(tmpfs, "right")
    operations = [
        Operation("create", ("a", 0, 0o644)),
        Operation("truncate", ("a", 10)),
        Operation("stat", ("b",)),
        Operation("stat", ("a",)),
    ]
    with pytest.raises(Difference) as found:
        run(operations, left, right)
    assert found.value.steps == 2
