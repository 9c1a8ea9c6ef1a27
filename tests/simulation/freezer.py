"""Freezing a machine: its tasks stop between two steps while time goes on for everybody else, as after SIGSTOP or a suspend."""

from collections import Counter
from contextvars import ContextVar

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

MACHINE: ContextVar[int] = ContextVar("machine")
"""The machine that a task runs on: every task takes it over from the one that started it."""


class Freezer(trio.abc.Instrument):
    """Keeps the tasks of frozen machines from the scheduler, in the order in which they became ready."""

    def __init__(self) -> None:
        self.times: Counter[int] = Counter()
        self._kept: dict[int, list[trio.lowlevel.Task]] = {}

    def is_frozen(self, machine: int) -> bool:
        """Whether nothing of a machine runs."""
        return machine in self._kept

    def freeze(self, machine: int) -> None:
        """Stop a machine: each of its tasks ends the step it is in, and makes no other."""
        self._kept.setdefault(machine, [])
        self.times[machine] += 1

    def thaw(self, machine: int) -> None:
        """Let a machine go on, if it is frozen."""
        GLOBAL_RUN_CONTEXT.runner.runq.extend(self._kept.pop(machine, []))

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        kept = self._kept.get(task.context.get(MACHINE, -1))
        if kept is not None:
            taken = GLOBAL_RUN_CONTEXT.runner.runq.pop()
            assert taken is task, "the scheduler queues a task right before it says so"
            kept.append(task)
