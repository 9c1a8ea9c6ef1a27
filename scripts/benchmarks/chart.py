"""What a run found, as a bar chart: each step's time beside that of passthrough_ll, the floor of FUSE."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.machine import Machine
from scripts.benchmarks.passthrough import PASSTHROUGH
from scripts.benchmarks.series import Figure, Findings
from scripts.benchmarks.subjects import SUBJECTS

FORMATS = ("png", "svg")
RATES = ("/s", "MiB/s")
TIMES = ("s", "ms", "µs")
COLOURS = dict(zip(SUBJECTS, ("#999999", "#000000", "#8fb0dc", "#c44e52", "#e7a3a5", "#55a868", "#ccb974"), strict=True))
"""One colour for each subject, in every chart."""

INCHES_A_BAR, INCHES_WIDE, INCHES_AROUND = 0.11, 10.0, 1.6


class Group(NamedTuple):
    """The bars of one step: how many times as long as passthrough_ll each subject took, by its name."""

    what: str
    bars: Mapping[str, float]


def drawn(path: Path, machine: Machine, everything: Sequence[Findings]) -> str:
    """Draw it; what was done, or why it was not."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return "chart: skipped, since matplotlib is not installed: `uv sync --group bench` installs it"
    groups = list(_groups(everything))
    if not groups:
        return f"chart: skipped, since nothing was measured beside {PASSTHROUGH}"
    # passthrough_ll is the line that the bars begin at.
    names = [name for name in SUBJECTS if name != PASSTHROUGH and any(name in group.bars for group in groups)]
    height = INCHES_AROUND + INCHES_A_BAR * len(groups) * (len(names) + 1)
    canvas = Canvas(figsize=(INCHES_WIDE, height), layout="constrained")
    axes = canvas.subplots()
    for place, name in enumerate(names):
        rows = [(number, group.bars[name]) for number, group in enumerate(groups) if name in group.bars]
        offsets = [number + (place - (len(names) - 1) / 2) / (len(names) + 1) for number, _ in rows]
        # Bars begin at 1: to the left is faster, to the right is slower.
        widths = [ratio - 1 for _, ratio in rows]
        axes.barh(offsets, widths, height=1 / (len(names) + 1), left=1, color=COLOURS[name], label=name)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8, label=PASSTHROUGH)
    axes.set_yticks(range(len(groups)), [group.what for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(f"time, as a multiple of what {PASSTHROUGH} takes (logarithmic; less is better)")
    axes.grid(axis="x", linewidth=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -INCHES_AROUND / 2 / height), ncols=4, fontsize="small", frameon=False)
    words = f"{machine}".split(", ")
    axes.set_title(f"agentfs beside its neighbours\n{', '.join(words[:3])}\n{', '.join(words[3:])}", fontsize="small")
    paths = [path.with_name(f"{path.name}.{kind}") for kind in FORMATS]
    for one in paths:
        canvas.savefig(one, dpi=150)
    return f"chart: {' and '.join(map(str, paths))}"


def _groups(everything: Sequence[Findings]) -> Iterator[Group]:
    """The steps that passthrough_ll did too."""
    for findings in everything:
        for what in dict.fromkeys(figure.what for figure in findings.figures):
            times = dict(_times(figure for figure in findings.figures if figure.what == what))
            if PASSTHROUGH in times and len(times) > 1:
                yield Group(what, {name: taken / times[PASSTHROUGH] for name, taken in times.items()})


def _times(figures: Iterator[Figure]) -> Iterator[tuple[str, float]]:
    """How long each subject took, in any unit: of a rate, how long for one."""
    for figure in figures:
        if figure.place not in SUBJECTS or figure.unit not in RATES + TIMES:
            continue
        middle = statistics.median(figure.values)
        yield figure.place, 1 / middle if figure.unit in RATES else middle
