"""What a run found, as a table for people and as JSON for programs."""

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence

from scripts.benchmarks.machine import Machine
from scripts.benchmarks.phase import Measured
from scripts.benchmarks.series import Aim, Cost, Figure, Findings, Series

_Row = tuple[str, ...]


def table(phase: Measured, findings: Findings) -> str:
    """A phase's part of the table. The last column is the median beside that of the same thing's first place."""
    rows = [*_durations(findings.series), *_figures(findings.figures)]
    notes = (f"  note: {note}" for note in findings.notes)
    parts = (*_aligned(rows), *_aligned([*_costs(findings.costs)]), *map(_aim, findings.aims), *notes)
    return "\n".join([f"{phase.name}: {phase.about}", *parts, ""])


def targets(everything: Sequence[Findings]) -> str:
    """What was aimed at, all phases together, and what of it is met."""
    aims = [aim for findings in everything for aim in findings.aims]
    met = sum(aim.met for aim in aims)
    return "\n".join([f"aims: {met} of {len(aims)} met", *map(_aim, aims), ""])


def _aligned(rows: Sequence[_Row]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for what, place, *figures in rows:
        cells = (figure.rjust(width) for figure, width in zip(figures, widths[2:], strict=True))
        yield "  ".join(["", what.ljust(widths[0]), place.ljust(widths[1]), *cells]).rstrip()


def _durations(series: Sequence[Series]) -> Iterator[_Row]:
    if series:
        yield "", "", "median", "spread", "p99", "fastest", "n", "ratio"
    first = {one.what: one for one in reversed(series)}
    for one in series:
        times = map(_time, (one.median, one.spread, one.p99, one.fastest))
        yield one.what, one.place, *times, str(len(one.nanoseconds)), _ratio(one, first[one.what])


def _figures(figures: Sequence[Figure]) -> Iterator[_Row]:
    if figures:
        yield "", "", "median", "spread", "least", "most", "n", "ratio"
    first = {one.what: one for one in reversed(figures)}
    for one in figures:
        amounts = (_amount(value, one.unit) for value in (one.median, one.spread, min(one.values), max(one.values)))
        yield one.what, one.place, *amounts, str(len(one.values)), _ratio(one, first[one.what])


def _costs(costs: Sequence[Cost]) -> Iterator[_Row]:
    """The medians of the rounds; places with the same step stand together."""
    if costs:
        yield "cost of", "", *(title for title, *_ in _COLUMNS)
    steps = list(dict.fromkeys(cost.what for cost in costs))
    for what, place in sorted(dict.fromkeys((cost.what, cost.place) for cost in costs), key=lambda pair: steps.index(pair[0])):
        some = [cost for cost in costs if (cost.what, cost.place) == (what, place)]
        yield what, place, *(_median(some, field, unit, scale) for _, field, unit, scale in _COLUMNS)


_COLUMNS = (
    ("processor", "processor_seconds", "s", 1),
    ("peak", "peak_mib", "MiB", 1),
    ("PUTs", "puts", "", 1),
    ("GETs", "gets", "", 1),
    ("others", "others", "", 1),
    ("put", "bytes_in", "MiB", 1 << 20),
    ("got", "bytes_out", "MiB", 1 << 20),
)
"""What a step costs: the title, the field of Cost, its unit, and how many of what the field has make one of it."""


def _median(costs: Sequence[Cost], field: str, unit: str, scale: int) -> str:
    values = [getattr(cost, field) for cost in costs]
    return "-" if None in values else _amount(statistics.median(values) / scale, unit)


def _ratio(one: Series | Figure, neighbour: Series | Figure) -> str:
    return f"{one.median / neighbour.median:.2f} ×" if one is not neighbour and neighbour.median else ""


def _aim(aim: Aim) -> str:
    bound = f"at {'least' if aim.at_least else 'most'} {aim.bound:g}"
    return f"  aim: {aim.what}: {aim.value:.2f} {aim.unit}, {bound}: {'met' if aim.met else 'MISSED'}"


def _amount(value: float, unit: str) -> str:
    digits = 0 if value >= 100 or value == int(value) else 2 if value >= 1 else 4
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
                "spread_us": one.spread / 1e3,
                "p99_us": one.p99 / 1e3,
                "fastest_us": one.fastest / 1e3,
                "samples_us": [sample / 1e3 for sample in one.nanoseconds],
            }
            for one in findings.series
        ],
        "figures": [{**dataclasses.asdict(one), "median": one.median, "spread": one.spread} for one in findings.figures],
        "costs": [dataclasses.asdict(one) for one in findings.costs],
        "notes": list(findings.notes),
        "aims": [{**dataclasses.asdict(aim), "met": aim.met} for aim in findings.aims],
    }
