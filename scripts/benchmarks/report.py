"""What a run found, as a table for people and as JSON for programs."""

import dataclasses
import json
from collections.abc import Iterator, Sequence

from scripts.benchmarks.machine import Machine
from scripts.benchmarks.phase import Phase
from scripts.benchmarks.series import Aim, Findings, Series

_COLUMNS = "  {:<22} {:<11} {:>10} {:>10} {:>10} {:>6} {:>9}"


def table(phase: Phase, findings: Findings) -> str:
    """A phase's part of the table. The last column is the median beside that of the same thing's first place."""
    return "\n".join([f"{phase.name}: {phase.about}", *_rows(findings.series), *map(_aim, findings.aims), ""])


def _rows(series: Sequence[Series]) -> Iterator[str]:
    yield _COLUMNS.format("", "", "median", "p99", "fastest", "n", "ratio")
    first = {one.what: one for one in reversed(series)}
    for one in series:
        neighbour = first[one.what]
        ratio = "" if one is neighbour else f"{one.median / neighbour.median:.1f} ×"
        figures = (_time(one.median), _time(one.p99), _time(one.fastest))
        yield _COLUMNS.format(one.what, one.place, *figures, len(one.nanoseconds), ratio)


def _aim(aim: Aim) -> str:
    return f"  aim: {aim.what}: {aim.value:.2f} {aim.unit}, at most {aim.bound:g}: {'met' if aim.met else 'MISSED'}"


def _time(nanoseconds: float) -> str:
    if nanoseconds < 1e6:
        return f"{nanoseconds / 1e3:.1f} µs"
    return f"{nanoseconds / 1e6:.2f} ms"


def as_json(machine: Machine, everything: Sequence[Findings]) -> str:
    """All of it, every sample included."""
    return json.dumps(
        {"machine": dataclasses.asdict(machine), "phases": {findings.phase: _phase(findings) for findings in everything}},
        ensure_ascii=False,
    )


def _phase(findings: Findings) -> dict[str, object]:
    return {
        "series": [
            {
                "what": one.what,
                "place": one.place,
                "median_us": one.median / 1e3,
                "p99_us": one.p99 / 1e3,
                "fastest_us": one.fastest / 1e3,
                "samples_us": [sample / 1e3 for sample in one.nanoseconds],
            }
            for one in findings.series
        ],
        "aims": [{**dataclasses.asdict(aim), "met": aim.met} for aim in findings.aims],
    }
