"""Loads for the simulation: when jobs arrive and how long each takes, made up or recorded from a cluster."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

RECORDED = Path(__file__).with_name("recorded.csv")
"""Arrival and duration in seconds of each job that a node performed; see README.md of `bench`."""


class Arrival(NamedTuple):
    at: float
    job_type: str
    seconds: float


class Load(NamedTuple):
    """limits: jobs of a type that may run at once. slots: of a node. until: the second at which it ends."""

    arrivals: list[Arrival]
    until: int
    slots: int
    limits: dict[str, int]


def day_curve() -> Load:
    """A day in four hours, which makes it steeper: from one job a second at night to twenty at noon, two seconds each."""
    dice = random.Random(1)
    until = 4 * 3600
    rate = lambda at: 10.5 - 9.5 * math.cos(2 * math.pi * at / until)  # noqa: E731
    return Load(_poisson(dice, rate, 20.0, until, "DayJob", 2.0), until, 8, {})


def steady() -> Load:
    """Fifty jobs a second, of a second each, for an hour."""
    dice = random.Random(4)
    return Load(_poisson(dice, lambda _: 50.0, 50.0, 3600, "SteadyJob", 1.0), 3600, 16, {})


def long() -> Load:
    """Twelve jobs a minute, of five minutes each, for five hours."""
    dice = random.Random(5)
    until = 5 * 3600
    return Load(_poisson(dice, lambda _: 0.2, 0.2, until, "LongJob", 300.0), until, 16, {})


def bursts() -> Load:
    """Nothing, and then two thousand jobs of a second each at once, four times."""
    dice = random.Random(2)
    starts = (601, 2417, 4203, 6011)
    arrivals = [Arrival(at, "BurstJob", dice.expovariate(1.0)) for at in starts for _ in range(2000)]
    return Load(arrivals, 7800, 16, {})


def huge_limited() -> Load:
    """Five thousand jobs of five seconds of which four may run at once, beside a steady stream of others."""
    dice = random.Random(3)
    until = 2 * 3600
    huge = [Arrival(600.0, "HugeJob", dice.expovariate(1 / 5)) for _ in range(5000)]
    steady = _poisson(dice, lambda _: 2.0, 2.0, until, "SteadyJob", 1.0)
    return Load(sorted(huge + steady, key=lambda job: job.at), until, 16, {"HugeJob": 4})


def recorded() -> Load:
    """Three minutes of a real cluster, ten times over. Small nodes, so that there is something to decide."""
    with RECORDED.open(encoding="utf-8", newline="") as file:
        rows = [(float(row["arrival"]), row["job_type"], float(row["seconds"])) for row in csv.DictReader(file)]
    length = math.ceil(rows[-1][0]) + 1
    arrivals = [Arrival(turn * length + at, job_type, seconds) for turn in range(10) for at, job_type, seconds in rows]
    return Load(arrivals, 10 * length, 4, {})


LOADS: dict[str, Callable[[], Load]] = {
    "day": day_curve, "bursts": bursts, "steady": steady, "long": long, "limited": huge_limited, "recorded": recorded,
}  # fmt: skip


def _poisson(
    dice: random.Random, rate: Callable[[float], float], highest: float, until: float, job_type: str, mean: float
) -> list[Arrival]:
    """Independent arrivals at a rate that changes, by thinning; durations are exponential."""
    arrivals, at = [], 0.0
    while (at := at + dice.expovariate(highest)) < until:
        if dice.random() < rate(at) / highest:
            arrivals.append(Arrival(at, job_type, dice.expovariate(1 / mean)))
    return arrivals
