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
TREE_EVERY = 25
"""Steps between two comparisons of the whole trees."""


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


def run(operations: list[Operation], left: Tree, right: Tree, *, tree_every: int) -> None:
    """Do the operations on both sides. Raises Difference at the first that shows one."""
    for steps, operation in enumerate(operations, start=1):
        one, two = left.perform(operation), right.perform(operation)
        if one != two:
            raise Difference(steps, f"{operation} gave {one!r}, should give {two!r}")
        if steps % tree_every == 0:
            compare_trees(left, right, steps)
    compare_trees(left, right, len(operations))


def fresh(top: Path, name: str) -> Tree:
    """A new tree."""
    (top / name).mkdir(mode=0o755)
    return Tree(top / name)


def first_difference(operations: list[Operation], left: Path, right: Path) -> Difference | None:
    """None if both sides agree; otherwise the difference with the fewest operations before it."""
    found = None
    for name, tree_every in (("quick", TREE_EVERY), ("exact", 1)):
        one, two = fresh(left, name), fresh(right, name)
        try:
            run(operations, one, two, tree_every=tree_every)
            return found
        except Difference as difference:
            found = difference
            operations = operations[: difference.steps]
        finally:
            one.close()
            two.close()
    return found


def check(seed: int, left: Path, right: Path) -> None:
    """Fail, with the seed and the operations to do by hand, if the sides differ."""
    operations = Generator(seed).operations(STEPS)
    difference = first_difference(operations, left, right)
    if difference:
        listed = "\n".join(
            f"{number:4} {operation}" for number, operation in enumerate(operations[: difference.steps], start=1)
        )
        print(f"{listed}\nAGENTFS_MODEL_SEEDS={seed} AGENTFS_MODEL_STEPS={difference.steps}", file=sys.stderr)
        pytest.fail(f"seed {seed}, operation {difference.steps} (mount first, tmpfs second): {difference}")


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
        run(operations, left, right, tree_every=100)
    assert found.value.steps == 4
    left, right = Forgetful(fresh(tmpfs, "left 2").root), fresh(tmpfs, "right 2")
    with pytest.raises(Difference) as found:
        run(operations, left, right, tree_every=1)
    assert found.value.steps == 2
