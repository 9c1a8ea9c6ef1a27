"""What a phase found: how long one thing took in one place, each time it was done, and other figures."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

WARM_UP = 3
"""How many of a series' first samples are dropped: they pay for what is there from then on."""


@dataclass(frozen=True, slots=True)
class Series:
    """How long `what` took in `place`, in nanoseconds, in the order measured; the warm-up is not in it."""

    what: str
    place: str
    nanoseconds: tuple[int, ...]

    @property
    def median(self) -> float:
        """In nanoseconds."""
        return statistics.median(self.nanoseconds)

    @property
    def spread(self) -> float:
        """The median of how far the samples are from their median, in nanoseconds."""
        return median_deviation(self.nanoseconds)

    @property
    def p99(self) -> int:
        """In nanoseconds; of fewer than a hundred samples it is the longest."""
        ordered = sorted(self.nanoseconds)
        return ordered[-(-len(ordered) * 99 // 100) - 1]

    @property
    def fastest(self) -> int:
        """In nanoseconds."""
        return min(self.nanoseconds)


@dataclass(frozen=True, slots=True)
class Figure:
    """What else was measured in `place`, once a round: a rate, a count, a number of bytes. 0 may be such a value."""

    what: str
    place: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """In `unit`."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """The median of how far the values are from their median, in `unit`."""
        return median_deviation(self.values)


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure that the project wants to be at most `bound`, or at least, in the same `unit` as `value`."""

    what: str
    value: float
    bound: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step of a round cost those who serve a place. Requests are the S3 server's counts, None where there is none."""

    what: str
    place: str
    round: int
    processor_seconds: float
    peak_mib: float
    puts: int | None
    gets: int | None
    others: int | None
    bytes_in: int | None
    bytes_out: int | None


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a phase found."""

    phase: str
    series: tuple[Series, ...] = ()
    aims: tuple[Aim, ...] = ()
    figures: tuple[Figure, ...] = ()
    costs: tuple[Cost, ...] = ()
    notes: tuple[str, ...] = ()
    """What must be known to read the figures, one line each: who is missing, and who failed where."""


class Tally:
    """Samples as they come; each pair of a thing and a place makes a series."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, str], list[int]] = {}

    def add(self, what: str, place: str, nanoseconds: Iterable[int]) -> None:
        """Note how long something took, once or several times."""
        self._samples.setdefault((what, place), []).extend(nanoseconds)

    def series(self) -> tuple[Series, ...]:
        """What was noted, without each one's warm-up; places with the same thing stand together."""
        order = {what: None for what, _ in self._samples}
        return tuple(
            Series(what, place, tuple(samples[WARM_UP:]))
            for wanted in order
            for (what, place), samples in self._samples.items()
            if what == wanted
        )


class Ledger:
    """Figures as they come, one value a round; each pair of a thing and a place makes a figure."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str, str], list[float]] = {}

    def add(self, what: str, place: str, value: float, unit: str) -> None:
        """Note a value."""
        self._values.setdefault((what, place, unit), []).append(value)

    def figures(self) -> tuple[Figure, ...]:
        """What was noted; places with the same thing stand together."""
        order = {what: None for what, _, _ in self._values}
        return tuple(
            Figure(what, place, unit, tuple(values))
            for wanted in order
            for (what, place, unit), values in self._values.items()
            if what == wanted
        )

    def has(self, what: str, place: str) -> bool:
        """Whether anything was noted of one thing in one place."""
        return any((one, where) == (what, place) for one, where, _ in self._values)

    def values(self, what: str, place: str) -> list[float]:
        """What was noted of one thing in one place, in the order of the rounds."""
        return next(values for (one, where, _), values in self._values.items() if (one, where) == (what, place))

    def median(self, what: str, place: str) -> float:
        """The median of that."""
        return statistics.median(self.values(what, place))

    def beside(
        self, what: str, place: str, neighbour: str, *, at_most: float | None = None, at_least: float | None = None
    ) -> Iterator[Aim]:
        """The aim for what one place has divided by what its neighbour has; nothing where either has none.

        It is the median of the rounds' ratios: what was measured one after the other stands side by side, since the machine
        may be busier in one round than in another.
        """
        bound = at_most if at_most is not None else at_least
        assert bound is not None
        if not self.has(what, place) or not self.has(what, neighbour):
            return
        pairs = zip(self.values(what, place), self.values(what, neighbour), strict=False)
        ratio = statistics.median(one / other for one, other in pairs)
        yield Aim(f"{what}: {place} ÷ {neighbour}", ratio, bound, "×", at_least=at_least is not None)


def median_deviation(values: Sequence[float]) -> float:
    """The median absolute deviation: a spread that one stray value does not move."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def median(series: Sequence[Series], what: str, place: str) -> float:
    """The median of one of several series, in nanoseconds."""
    return next(one.median for one in series if one.what == what and one.place == place)
