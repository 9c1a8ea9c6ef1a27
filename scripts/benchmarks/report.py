"""What a run found, as a table for people and as JSON for programs."""

import dataclasses
import json
from collections.abc import Iterator, Sequence

from scripts.benchmarks.machine import Machine
from scripts.benchmarks.phase import Measured
from scripts.benchmarks.series import Aim, Figure, Findings, Series

_Row = tuple[str, ...]


def table(phase: Measured, findings: Findings) -> str:
    """A phase's part of the table. The last column is the median beside that of the same thing's first place."""
    rows = [*_durations(findings.series), *_figures(findings.figures)]
    return "\n".join([f"{phase.name}: {phase.about}", *_aligned(rows), *map(_aim, findings.aims), ""])


def _aligned(rows: Sequence[_Row]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for what, place, *figures in rows:
        cells = (figure.rjust(width) for figure, width in zip(figures, widths[2:], strict=True))
        yield "  ".join(["", what.ljust(widths[0]), place.ljust(widths[1]), *cells]).rstrip()


def _durations(series: Sequence[Series]) -> Iterator[_Row]:
    if series:
        yield "", "", "median", "p99", "fastest", "n", "ratio"
    first = {one.what: one for one in reversed(series)}
    for one in series:
        times = (_time(one.median), _time(one.p99), _time(one.fastest))
        yield one.what, one.place, *times, str(len(one.nanoseconds)), _ratio(one, first[one.what])


def _figures(figures: Sequence[Figure]) -> Iterator[_Row]:
    if figures:
        yield "", "", "median", "least", "most", "n", "ratio"
    first = {one.what: one for one in reversed(figures)}
    for one in figures:
        amounts = (_amount(value, one.unit) for value in (one.median, min(one.values), max(one.values)))
        yield one.what, one.place, *amounts, str(len(one.values)), _ratio(one, first[one.what])


def _ratio(one: Series | Figure, neighbour: Series | Figure) -> str:
    return f"{one.median / neighbour.median:.2f} ×" if one is not neighbour and neighbour.median else ""


def _aim(aim: Aim) -> str:
    bound = f"at {'least' if aim.at_least else 'most'} {aim.bound:g}"
    return f"  aim: {aim.what}: {aim.value:.2f} {aim.unit}, {bound}: {'met' if aim.met else 'MISSED'}"


def _amount(value: float, unit: str) -> str:
    digits = 0 if value >= 100 or value == int(value) else 2
    return f"{value:,.{digits}f} {unit}".rstrip()


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
        "figures": [dataclasses.asdict(one) for one in findings.figures],
        "aims": [{**dataclasses.asdict(aim), "met": aim.met} for aim in findings.aims],
    }
