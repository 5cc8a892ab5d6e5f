"""When a schedule is due: cron with Debian's rules, or a fixed grid, in a time zone. Pure; the clock is an argument.

`after` gives occurrences, `run_at` adds their jitter. cronsim finds the times of a wall clock; what a change of the clock makes of
them is decided here.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from cluster.errors import RecurrenceError

ALIASES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
FIELDS = ("minute", "hour", "day of month", "month", "day of week")
ALLOWED = (
    "0-59", "0-23", "1-31, L (the last) or LW (the last weekday)", "1-12 or JAN-DEC",
    "0-7 or SUN-SAT, 5L (the last Friday) or 5#2 (the second)",
)  # fmt: skip
HASHED = ((0, 59), (0, 23), (1, 28), (1, 12), (0, 6))
"""From where to where `H` may fall in each field: days that every month has."""
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(days=3650)
"""Bounds of `every`."""
NEVER = timedelta(0)
_TICK = timedelta(microseconds=1)
_DAY = timedelta(days=1)
_END = datetime(9990, 1, 1, tzinfo=UTC)
"""Of what Postgres and Python can both count on from."""


@dataclass(frozen=True)
class Recurrence:
    """Either cron or every. RecurrenceError: it makes no sense; the message says what is allowed.

    name: of the schedule, by which `H` and jitter are spread. starts_at, ends_at: with a zone; nothing is due before the one or
    after the other. jitter: an occurrence runs by up to this much later, always by the same amount.
    """

    name: str
    cron: str | None = None
    every: timedelta | None = None
    time_zone: str = "UTC"
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    jitter: timedelta = NEVER

    def __post_init__(self) -> None:
        for bound in ("starts_at", "ends_at"):  # Python compares and counts moments of one zone by the wall
            if getattr(self, bound) is not None:
                object.__setattr__(self, bound, getattr(self, bound).astimezone(UTC))
        if (self.cron is None) == (self.every is None):
            raise RecurrenceError("give either cron or every")
        if self.starts_at is not None and self.ends_at is not None and self.ends_at <= self.starts_at:
            raise RecurrenceError("ends_at must be after starts_at")
        if self.every is not None and not SHORTEST <= self.every <= LONGEST:
            raise RecurrenceError(f"every must be 1 second to {LONGEST.days} days, not {self.every}")
        if self.jitter < NEVER:
            raise RecurrenceError("jitter must not be negative")
        _ = self._zone
        if self.cron is not None:
            _ = self._expression
        shortest = self._shortest_interval()
        if self.jitter > shortest:
            raise RecurrenceError(f"jitter must not be longer than the shortest interval, which is {shortest}")

    # --- occurrences ---

    def after(self, moment: datetime, anchor: datetime | None = None) -> datetime | None:
        """The first occurrence after a moment, in UTC. None: there is none any more.

        anchor: an occurrence of `every` from which its grid counts; None: starts_at, or the moment.
        """
        moment = moment.astimezone(UTC)
        if self.starts_at is not None:
            moment = max(moment, self.starts_at - _TICK)
        try:
            due = self._on_grid(moment, anchor) if self.every is not None else self._next_match(moment)
        except OverflowError:  # beyond the year 9999
            return None
        return None if due is None or due > (self.ends_at or _END) else due

    def following(self, moment: datetime, anchor: datetime | None = None) -> Iterator[datetime]:
        """All occurrences after a moment, in order."""
        due = self.after(moment, anchor)
        while due is not None:
            yield due
            due = self.after(due, due)

    def run_at(self, due: datetime) -> datetime:
        """When an occurrence is to run: its time, or up to the jitter later."""
        return due if self.jitter == NEVER else due + self.jitter * _fraction(f"{self.name} {due.timestamp():.0f}")

    def words(self) -> str:
        """As people say it."""
        if self.every is not None:
            return f"every {in_words(self.every)}"
        text = CronSim(self._expression, datetime(2000, 1, 1)).explain()  # noqa: DTZ001 - a wall clock
        return text if self.time_zone == "UTC" else f"{text}, {self.time_zone}"

    # --- every ---

    def _on_grid(self, moment: datetime, anchor: datetime | None) -> datetime:
        assert self.every is not None
        anchor = self.starts_at if anchor is None else anchor.astimezone(UTC)
        if anchor is None:
            return moment + self.every
        return anchor + ((moment - anchor) // self.every + 1) * self.every

    # --- cron ---

    @cached_property
    def _zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.time_zone)
        except (KeyError, ValueError, OSError):
            raise RecurrenceError(f"there is no time zone {self.time_zone!r}{_likely_zone(self.time_zone)}") from None

    @cached_property
    def _expression(self) -> str:
        """Five fields without aliases and `H`."""
        assert self.cron is not None
        return _plain(self.cron, self.name)

    def _next_match(self, moment: datetime) -> datetime | None:
        return _next_match(self._expression, self._zone, moment)

    def _shortest_interval(self) -> timedelta:
        """Of cron: as far as some occurrences tell."""
        if self.every is not None:
            return self.every
        start = datetime(2024, 1, 1, tzinfo=UTC)
        first = self._next_match(start)
        if first is None:
            raise RecurrenceError(f"cron {self.cron!r} never matches: there is no such day")
        if self.jitter == NEVER:
            return LONGEST
        found = [first]
        while len(found) < 50 and (due := self._next_match(found[-1])) is not None:
            found.append(due)
        return min((b - a for a, b in pairwise(found)), default=LONGEST)


@dataclass(frozen=True)
class _Wall:
    """When the clock of a zone shows a time that matches. expression: five fields, without aliases and `H`."""

    expression: str
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime | None:
        minute, hour, *_ = self.expression.split()
        if minute.startswith("*") or hour.startswith("*"):
            return self._by_elapsed_time(moment)
        return self._at_fixed_times(moment)

    def _at_fixed_times(self, moment: datetime) -> datetime | None:
        """What a change of the clock leaves out is due at its end, what it repeats the first time."""
        for wall in CronSim(self.expression, _wall(moment.astimezone(self.zone))):
            due = wall.replace(tzinfo=self.zone).astimezone(UTC)
            if _wall(due.astimezone(self.zone)) != wall:
                due = self._end_of_gap(wall)
            if due > moment:
                return due
        return None

    def _end_of_gap(self, wall: datetime) -> datetime:
        """The moment at which the clock was put forward beyond `wall`, a time that it never showed."""
        before = wall.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
        after = wall.replace(tzinfo=self.zone, fold=0).astimezone(UTC)
        return self._change_between(min(before, after) - timedelta(seconds=1), max(before, after))

    def _by_elapsed_time(self, moment: datetime) -> datetime | None:
        """Whenever the clock shows a matching time: twice where it is put back, not at all where it is put forward."""
        while True:
            offset = self._offset(moment + _TICK)
            wall = next(CronSim(self.expression, _wall(moment.astimezone(UTC) + offset)), None)
            if wall is None:
                return None
            due = wall.replace(tzinfo=UTC) - offset
            change = self._first_change(moment, offset, due)
            if change is None:
                return due
            moment = change - _TICK

    def _first_change(self, moment: datetime, offset: timedelta, until: datetime) -> datetime | None:
        """When the clock is first put forward or back after a moment, up to another one. None: it is not."""
        low = moment + _TICK
        while low < until:
            high = min(low + _DAY, until)
            if self._offset(high) != offset:
                return self._change_between(low, high)
            low = high
        return None

    def _change_between(self, low: datetime, high: datetime) -> datetime:
        """The one change of the clock in (low, high], to the second."""
        first, last, before = int(low.timestamp()), int(high.timestamp()), self._offset(low)
        while last - first > 1:
            middle = (first + last) // 2
            if self._offset(datetime.fromtimestamp(middle, UTC)) == before:
                first = middle
            else:
                last = middle
        return datetime.fromtimestamp(last, UTC)

    def _offset(self, moment: datetime) -> timedelta:
        offset = moment.astimezone(self.zone).utcoffset()
        assert offset is not None
        return offset


@lru_cache(10_000)
def _next_match(expression: str, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """Of all schedules with this cron. moment: in UTC."""
    return _Wall(expression, zone).after(moment)


def in_words(interval: timedelta) -> str:
    """2 minutes; 1 hour 30 minutes."""
    seconds, parts = interval.total_seconds(), []
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count:g} {unit}{'s' if count > 1 else ''}")
    if seconds:
        parts.append(f"{seconds:g} second{'s' if seconds != 1 else ''}")
    return " ".join(parts)


def _likely_zone(name: str) -> str:
    zones = sorted(available_timezones())
    ending = f"/{name.strip().lower().replace(' ', '_')}"
    close = [zone for zone in zones if zone.lower().endswith(ending)] or difflib.get_close_matches(name, zones, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _wall(moment: datetime) -> datetime:
    """What a clock shows, without its zone."""
    return moment.replace(tzinfo=None, fold=0)


def _plain(cron: str, name: str) -> str:
    """RecurrenceError: names the field, and what is allowed there."""
    text = cron.strip()
    if text.startswith("@"):
        if text.lower() not in ALIASES:
            raise RecurrenceError(f"there is no alias {text!r}: {', '.join(ALIASES)}")
        text = ALIASES[text.lower()]
    fields = text.split()
    if len(fields) != 5:
        raise RecurrenceError(
            f"cron {cron!r} has {len(fields)} fields, and needs five: minute, hour, day of month, month, day of week"
        )
    plain = [_without_hash(field, place, name) for place, field in enumerate(fields)]
    for place, field in enumerate(plain):
        alone = ["*"] * 5
        alone[place] = field
        try:
            CronSim(" ".join(alone), datetime(2000, 1, 1))  # noqa: DTZ001 - a wall clock
        except CronSimError:
            raise RecurrenceError(
                f"cron {cron!r}: {FIELDS[place]} {fields[place]!r}: allowed are {ALLOWED[place]}, also as lists (1,2),"
                " ranges (1-5), steps (*/2) and H"
            ) from None
    try:
        CronSim(" ".join(plain), datetime(2000, 1, 1))  # noqa: DTZ001 - a wall clock
    except CronSimError:
        raise RecurrenceError(f"cron {cron!r} never matches: there is no such day") from None
    return " ".join(plain)


_HASH = re.compile(r"H(?:\((\d+)-(\d+)\))?(?:/(\d+))?", re.IGNORECASE)


def _without_hash(field: str, place: int, name: str) -> str:
    """With a number for H, the same one always: H; H(0-29); H/15 and H(0-29)/10, which are every so many from there."""
    match = _HASH.fullmatch(field)
    if match is None:
        return field
    lowest, highest = HASHED[place]
    low, high = int(match[1] or lowest), int(match[2] or highest)
    step = int(match[3] or 0)
    limit = 31 if place == 2 else highest
    if not lowest <= low <= high <= limit or (match[3] is not None and not 1 <= step <= high - low + 1):
        return field  # no number that the field can have: refused like any other
    fraction = _fraction(f"{name} {FIELDS[place]}")
    if not step:
        return str(low + int(fraction * (high - low + 1)))
    return ",".join(map(str, range(low + int(fraction * step), high + 1, step)))


def _fraction(text: str) -> float:
    """From 0 up to 1, the same one always."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
