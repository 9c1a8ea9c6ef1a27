"""Latencies: which replica is nearest, what is late, and when an old measurement says nothing any more."""

import pytest

from agentfs.chunks.latency import (
    KNOWN_MIN,
    LATE_FLOOR_SECONDS,
    LATE_UNKNOWN_SECONDS,
    STALE_SECONDS,
    WINDOW,
    Latencies,
    ReadLatencies,
    SizeClass,
    size_class,
)

KIB, MIB = 1 << 10, 1 << 20


def measured(*seconds: float) -> Latencies:
    latencies = Latencies()
    for number, each in enumerate(seconds):
        latencies.answered(each, float(number) / 1000)
    return latencies


@pytest.mark.parametrize(
    ("length", "size"),
    [
        (0, SizeClass.SMALL),
        (256 * KIB, SizeClass.SMALL),
        (256 * KIB + 1, SizeClass.MEDIUM),
        (2 * MIB, SizeClass.MEDIUM),
        (2 * MIB + 1, SizeClass.LARGE),
        (None, SizeClass.LARGE),
    ],
)
def test_the_classes_of_size(length: int | None, size: SizeClass) -> None:
    assert size_class(length) == size


def test_late_is_what_95_of_100_answers_keep_within() -> None:
    assert measured(*(number / 100 for number in range(1, 101))).late_seconds == pytest.approx(0.96)


def test_before_enough_answers_late_is_a_guess() -> None:
    assert measured(*[3.0] * (KNOWN_MIN - 1)).late_seconds == LATE_UNKNOWN_SECONDS
    assert measured(*[3.0] * KNOWN_MIN).late_seconds == 3.0


def test_nothing_is_late_at_once() -> None:
    assert measured(*[0.0001] * 100).late_seconds == LATE_FLOOR_SECONDS


def test_old_answers_are_forgotten() -> None:
    latencies = measured(*[9.0] * WINDOW, *[0.5] * WINDOW)
    assert latencies.late_seconds == 0.5
    assert latencies.median_seconds == 0.5


def test_the_average_follows_the_newest() -> None:
    assert measured(1.0).average_seconds == 1.0
    average = measured(1.0, *[0.1] * 20).average_seconds
    assert average is not None
    assert 0.1 < average < 0.12


def test_after_a_long_silence_the_newest_is_the_average() -> None:
    latencies = measured(5.0, 5.0, 5.0)
    latencies.answered(0.1, STALE_SECONDS + 1)
    assert latencies.average_seconds == pytest.approx(0.1)


def test_a_question_that_was_taken_back_counts_only_if_it_took_longer_than_usual() -> None:
    latencies = measured(0.1)
    latencies.waited(0.05, 1.0)
    assert latencies.average_seconds == 0.1
    latencies.waited(1.1, 1.0)
    assert latencies.average_seconds == pytest.approx(0.6)


def test_stale_is_what_was_asked_once_and_not_lately() -> None:
    latencies = Latencies()
    assert not latencies.stale(1e6)
    latencies.asked(10.0)
    assert not latencies.stale(10.0 + STALE_SECONDS - 1)
    assert latencies.stale(10.0 + STALE_SECONDS)


def test_a_class_that_was_never_measured_is_guessed_from_another() -> None:
    reads = ReadLatencies()
    assert reads.distance_seconds(SizeClass.LARGE) == 0.0
    assert reads.median_seconds is None
    reads.of(SizeClass.SMALL).answered(0.2, 0.0)
    assert reads.distance_seconds(SizeClass.LARGE) == 0.2
    reads.of(SizeClass.LARGE).answered(0.9, 0.0)
    assert (reads.distance_seconds(SizeClass.LARGE), reads.distance_seconds(SizeClass.SMALL)) == (0.9, 0.2)
    assert reads.median_seconds == 0.2
