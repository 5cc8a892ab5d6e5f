"""How long a failed job waits."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.backoff import (
    LONGEST,
    LONGEST_DELAY,
    Backoff,
    ConstantBackoff,
    ExponentialBackoff,
    LinearBackoff,
    PolynomialBackoff,
    seconds_after,
)

ATTEMPTS = st.integers(min_value=1, max_value=2**31 - 1)
JITTERS = st.floats(min_value=0, max_value=1)


def seconds(backoff: Backoff, attempts: int) -> list[float]:
    return [backoff(attempt).total_seconds() for attempt in range(1, attempts + 1)]


def test_a_constant_backoff_waits_thirty_seconds_unless_told_otherwise() -> None:
    assert seconds(ConstantBackoff(), 3) == [30, 30, 30]
    assert seconds(ConstantBackoff(timedelta(milliseconds=250)), 2) == [0.25, 0.25]


def test_linear_backoff_is_the_constant_one() -> None:
    assert LinearBackoff is ConstantBackoff


def test_an_exponential_backoff_starts_with_its_delay_and_doubles() -> None:
    assert seconds(ExponentialBackoff(timedelta(seconds=5)), 5) == [5, 10, 20, 40, 80]
    assert seconds(ExponentialBackoff(timedelta(seconds=2), factor=3), 4) == [2, 6, 18, 54]


def test_a_polynomial_backoff_is_the_attempt_to_a_power() -> None:
    assert seconds(PolynomialBackoff(), 5) == [1, 16, 81, 256, 625]
    assert seconds(PolynomialBackoff(power=2), 4) == [1, 4, 9, 16]


def test_growing_backoffs_stop_at_a_day_or_at_their_cap() -> None:
    assert ExponentialBackoff(timedelta(seconds=5))(100) == timedelta(days=1)
    assert PolynomialBackoff()(100) == timedelta(days=1)
    assert ExponentialBackoff(timedelta(seconds=5), cap=timedelta(seconds=30))(4) == timedelta(seconds=30)


@given(attempt=ATTEMPTS, factor=st.floats(min_value=1, max_value=1e9), jitter=JITTERS)
def test_no_attempt_makes_an_exponential_backoff_exceed_its_cap(attempt: int, factor: float, jitter: float) -> None:
    backoff = ExponentialBackoff(timedelta(seconds=1), factor=factor, jitter=jitter)
    assert timedelta(0) <= backoff(attempt) <= LONGEST


@given(attempt=ATTEMPTS, power=st.floats(min_value=0, max_value=1e6), jitter=JITTERS)
def test_no_attempt_makes_a_polynomial_backoff_exceed_its_cap(attempt: int, power: float, jitter: float) -> None:
    assert timedelta(0) <= PolynomialBackoff(power=power, jitter=jitter)(attempt) <= LONGEST


@given(attempt=ATTEMPTS, jitter=JITTERS)
def test_jitter_only_shortens_and_by_no_more_than_its_fraction(attempt: int, jitter: float) -> None:
    waited = ConstantBackoff(timedelta(seconds=100), jitter=jitter)(attempt).total_seconds()
    assert 100 * (1 - jitter) - 1e-5 <= waited <= 100 + 1e-5


@pytest.mark.parametrize("jitter", [-0.1, 1.1])
def test_jitter_is_a_fraction(jitter: float) -> None:
    for make in (ConstantBackoff, PolynomialBackoff):
        with pytest.raises(ValueError, match="fraction from 0 to 1"):
            make(jitter=jitter)


def test_backoffs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        ConstantBackoff(timedelta(seconds=-1))
    with pytest.raises(ValueError, match="negative"):
        PolynomialBackoff(cap=timedelta(seconds=-1))
    with pytest.raises(ValueError, match="use ConstantBackoff"):
        ExponentialBackoff(timedelta(seconds=1), factor=0.5)


@pytest.mark.parametrize(
    "backoff",
    [
        ConstantBackoff(timedelta.max), ConstantBackoff(timedelta.max, jitter=0.0), PolynomialBackoff(400, cap=timedelta.max),
        ExponentialBackoff(timedelta.max, cap=timedelta.max),
    ],
)  # fmt: skip
def test_a_backoff_of_ages_is_cut_to_a_hundred_years(backoff: Backoff) -> None:
    assert seconds_after(backoff, 1000) == LONGEST_DELAY


def test_a_delay_of_zero_stays_zero_however_large_its_factor_has_grown() -> None:
    assert seconds_after(ExponentialBackoff(timedelta(0), factor=1000), 1000) == 0
