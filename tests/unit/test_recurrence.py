"""When a schedule is due. Changes of the clock are compared, minute by minute, with a reference that shares no code with it."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, pairwise, takewhile
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, available_timezones

import pytest

from cluster.errors import RecurrenceError
from cluster.recurrence import LONGEST, Recurrence, in_words

BERLIN = "Europe/Berlin"


def due(recurrence: Recurrence, after: str, count: int = 3, anchor: datetime | None = None) -> list[str]:
    found = islice(recurrence.following(at(after), anchor), count)
    return [moment.strftime("%Y-%m-%d %H:%M:%S") for moment in found]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# --- cron ---


def test_the_first_occurrence_is_the_next_match_never_the_moment_itself() -> None:
    assert due(Recurrence("a", "0 5 * * *"), "2026-01-01 05:00", 1) == ["2026-01-02 05:00:00"]


def test_day_of_month_and_day_of_week_are_joined_as_in_debian() -> None:
    assert due(Recurrence("a", "0 0 13 * 5"), "2026-01-01") == [
        "2026-01-02 00:00:00", "2026-01-09 00:00:00", "2026-01-13 00:00:00",
    ]  # fmt: skip
    assert due(Recurrence("a", "0 0 */15 * 5"), "2026-01-01", 2) == ["2026-01-16 00:00:00", "2026-05-01 00:00:00"]


def test_names_lists_ranges_steps_and_last_days() -> None:
    assert due(Recurrence("a", "0,30 9-10/1 * JAN mon"), "2026-01-04") == [
        "2026-01-05 09:00:00", "2026-01-05 09:30:00", "2026-01-05 10:00:00",
    ]  # fmt: skip
    assert due(Recurrence("a", "0 0 L * *"), "2026-02-01", 1) == ["2026-02-28 00:00:00"]
    assert due(Recurrence("a", "0 0 29 2 *"), "2026-01-01", 2) == ["2028-02-29 00:00:00", "2032-02-29 00:00:00"]


@pytest.mark.parametrize(
    ("alias", "cron"),
    [("@hourly", "0 * * * *"), ("@daily", "0 0 * * *"), ("@midnight", "0 0 * * *"), ("@weekly", "0 0 * * 0"),
     ("@monthly", "0 0 1 * *"), ("@yearly", "0 0 1 1 *"), ("@Annually", "0 0 1 1 *")],
)  # fmt: skip
def test_aliases(alias: str, cron: str) -> None:
    assert due(Recurrence("a", alias), "2026-03-04") == due(Recurrence("a", cron), "2026-03-04")


def test_h_is_spread_by_name_within_its_field_and_stays_where_it_is() -> None:
    times = {due(Recurrence(f"schedule {number}", "H H * * *"), "2026-01-01", 1)[0] for number in range(200)}
    assert len(times) > 150
    assert len({time[11:13] for time in times}) == 24
    assert due(Recurrence("a", "H 5 * * *"), "2026-01-01") == due(Recurrence("a", "H 5 * * *"), "2026-01-01")


def test_h_in_a_range_and_by_steps() -> None:
    for number in range(50):
        (first, second) = due(Recurrence(f"s{number}", "H(10-19) 5 * * *"), "2026-01-01", 2)
        assert first[14] == "1"
        assert first[14:] == second[14:]
        minutes = [int(time[14:16]) for time in due(Recurrence(f"s{number}", "H/15 5 * * *"), "2026-01-01", 5)]
        assert minutes == [minutes[0] + 15 * step for step in range(4)] + [minutes[0]]
        assert due(Recurrence(f"s{number}", "0 0 H 2 *"), "2027-01-01", 1)[0] < "2027-03"


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("61 * * * *", "minute '61': allowed are 0-59"),
        ("* 24 * * *", "hour '24': allowed are 0-23"),
        ("* * 0 * *", "day of month '0': allowed are 1-31"),
        ("* * * 13 *", "month '13': allowed are 1-12"),
        ("* * * * MOO", "day of week 'MOO': allowed are 0-7"),
        ("*/0 * * * *", "minute '*/0'"),
        ("H(50-70) * * * *", "minute 'H(50-70)'"),
        ("H/61 * * * *", "minute 'H/61'"),
        ("* * * *", "has 4 fields, and needs five"),
        ("0 * * * * *", "has 6 fields, and needs five"),
        ("", "has 0 fields"),
        ("@reboot", "there is no alias '@reboot'"),
        ("0 0 30 2 *", "never matches"),
        ("0 0 31 4,6,9,11 *", "never matches"),
    ],
)
def test_a_wrong_cron_is_refused_with_the_field_and_what_is_allowed_there(cron: str, words: str) -> None:
    with pytest.raises(RecurrenceError) as error:
        Recurrence("a", cron)
    assert words in str(error.value)


# --- every, bounds, jitter ---


def test_every_counts_on_a_fixed_grid_from_the_occurrence_before() -> None:
    recurrence = Recurrence("a", every=timedelta(minutes=2))
    anchor = at("2026-01-01 00:00:30")
    assert recurrence.after(at("2026-01-01 10:01:00"), anchor) == at("2026-01-01 10:02:30")
    assert recurrence.after(at("2026-01-01 10:02:30"), anchor) == at("2026-01-01 10:04:30")
    assert recurrence.after(at("2025-12-31 23:59:00"), anchor) == at("2026-01-01 00:00:30")


def test_moments_of_any_time_zone_give_the_same_grid_over_a_change_of_the_clock() -> None:
    recurrence = Recurrence("a", every=timedelta(hours=5), starts_at=datetime(2026, 3, 28, 12, tzinfo=ZoneInfo(BERLIN)))
    moment, anchor = at("2026-03-29 03:00"), at("2026-03-28 11:00")
    assert recurrence.after(moment.astimezone(ZoneInfo(BERLIN)), anchor.astimezone(ZoneInfo(BERLIN))) == at(
        "2026-03-29 07:00"
    )
    assert recurrence.after(moment.astimezone(ZoneInfo(BERLIN))) == at("2026-03-29 07:00")


def test_every_runs_first_after_one_interval_or_at_its_start() -> None:
    assert due(Recurrence("a", every=timedelta(seconds=1)), "2026-01-01", 1) == ["2026-01-01 00:00:01"]
    starts = Recurrence("a", every=timedelta(hours=1), starts_at=at("2026-01-02 00:10"))
    assert due(starts, "2026-01-01", 2) == ["2026-01-02 00:10:00", "2026-01-02 01:10:00"]
    assert due(starts, "2026-01-05", 1) == ["2026-01-05 00:10:00"]


def test_nothing_is_due_outside_of_the_bounds() -> None:
    recurrence = Recurrence("a", "0 5 * * *", starts_at=at("2026-01-02 05:00"), ends_at=at("2026-01-03 05:00"))
    assert due(recurrence, "2025-01-01", 9) == ["2026-01-02 05:00:00", "2026-01-03 05:00:00"]


def test_the_end_of_time_is_the_end() -> None:
    assert Recurrence("a", "0 0 1 1 *").after(datetime(9999, 6, 1, tzinfo=UTC)) is None
    assert Recurrence("a", every=LONGEST).after(datetime(9999, 6, 1, tzinfo=UTC)) is None


def test_jitter_is_the_same_for_an_occurrence_and_differs_between_them() -> None:
    recurrence = Recurrence("a", "0 5 * * *", jitter=timedelta(minutes=10))
    days = list(islice(recurrence.following(at("2026-01-01")), 50))
    late = [recurrence.run_at(day) - day for day in days]
    assert late == [recurrence.run_at(day) - day for day in days]
    assert len(set(late)) == 50
    assert all(timedelta(0) <= by < timedelta(minutes=10) for by in late)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give either cron or every"),
        ({"cron": "@daily", "every": timedelta(days=1)}, "give either cron or every"),
        ({"every": timedelta(0)}, "every must be 1 second to 3650 days"),
        ({"every": timedelta(milliseconds=999)}, "every must be 1 second"),
        ({"every": timedelta(days=3_652_500)}, "every must be 1 second to 3650 days"),
        ({"cron": "@daily", "time_zone": "Europe/Berln"}, "did you mean 'Europe/Berlin'?"),
        ({"cron": "@daily", "time_zone": "new york"}, "did you mean 'America/New_York'?"),
        ({"cron": "@daily", "time_zone": "../../etc/passwd"}, "there is no time zone"),
        ({"cron": "@daily", "starts_at": at("2026-01-02"), "ends_at": at("2026-01-01")}, "ends_at must be after starts_at"),
        ({"cron": "*/30 * * * *", "jitter": timedelta(minutes=31)}, "jitter must not be longer than the shortest interval"),
        ({"every": timedelta(minutes=1), "jitter": timedelta(minutes=2)}, "jitter must not be longer"),
        ({"every": timedelta(minutes=1), "jitter": timedelta(-1)}, "jitter must not be negative"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_in_a_sentence(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(RecurrenceError) as error:
        Recurrence("a", **arguments)  # type: ignore[arg-type]
    assert words in str(error.value)


def test_words() -> None:
    assert Recurrence("a", "0 5 * * *", time_zone=BERLIN).words() == "At 05:00 every day, Europe/Berlin"
    assert Recurrence("a", every=timedelta(minutes=90)).words() == "every 1 hour 30 minutes"
    assert in_words(timedelta(days=1, seconds=1)) == "1 day 1 second"


# --- changes of the clock ---


def test_a_fixed_time_in_a_gap_is_due_once_at_its_end_and_in_a_fold_the_first_time() -> None:
    recurrence = Recurrence("a", "30 2 * * *", time_zone=BERLIN)
    assert due(recurrence, "2026-03-28 12:00", 2) == ["2026-03-29 01:00:00", "2026-03-30 00:30:00"]
    assert due(recurrence, "2026-10-24 12:00", 2) == ["2026-10-25 00:30:00", "2026-10-26 01:30:00"]
    assert due(recurrence, "2026-10-25 01:15", 1) == ["2026-10-26 01:30:00"]


def test_a_wildcard_follows_elapsed_time() -> None:
    recurrence = Recurrence("a", "*/30 * * * *", time_zone=BERLIN)
    for day in ("2026-03-29", "2026-10-25"):
        times = list(islice(recurrence.following(at(day)), 8))
        assert {b - a for a, b in pairwise(times)} == {timedelta(minutes=30)}


CRONS = (
    "30 2 * * *", "0,15 0-3 * * *", "0 0 * * *", "59 23 * * *", "10,50 1,2,3,23 * * *",
    "*/20 * * * *", "7 * * * *", "*/45 2 * * *", "30 */2 * * *",
)  # fmt: skip
BEFORE, AFTER = timedelta(hours=4), timedelta(hours=5)


@cache
def changes() -> dict[tuple[str, datetime], tuple[timedelta, timedelta]]:
    """All changes of all zones from 2000 to 2037, with the offsets before and after. Of zones that are the same, one."""
    found = {}
    for zone in one_of_each_zone():
        moment, end = datetime(2000, 1, 1, tzinfo=UTC), datetime(2038, 1, 1, tzinfo=UTC)
        info = ZoneInfo(zone)
        offset = moment.astimezone(info).utcoffset()
        while moment < end:
            later = moment + timedelta(days=7)
            if (new := later.astimezone(info).utcoffset()) != offset:
                low, high = moment, later
                while high - low > timedelta(seconds=1):
                    middle = (low + (high - low) / 2).replace(microsecond=0)
                    low, high = (low, middle) if middle.astimezone(info).utcoffset() == new else (middle, high)
                assert offset is not None
                assert new is not None
                found[zone, high] = offset, new
                offset = new
            moment = later
    return found


def one_of_each_zone() -> list[str]:
    by_content: dict[bytes, str] = {}
    for zone in sorted(available_timezones()):
        by_content.setdefault(_content(zone), zone)
    return list(by_content.values())


def _content(zone: str) -> bytes:
    for folder in TZPATH:
        if (path := Path(folder, zone)).is_file():
            return path.read_bytes()
    package, _, name = f"tzdata.zoneinfo.{zone.replace('/', '.')}".rpartition(".")
    return (importlib.resources.files(package) / name).read_bytes()


def reference(cron: str, zone: str, start: datetime, end: datetime) -> set[datetime]:
    """Minute by minute: a wildcard is due whenever the clock shows a match; a fixed time the first time that the clock shows it,
    and at the first minute behind it if it does not."""
    info, minute, hour = (
        ZoneInfo(zone),
        *[numbers(field, most) for field, most in zip(cron.split(), (60, 24), strict=False)],
    )
    is_wild = cron.startswith("*") or cron.split()[1].startswith("*")
    found, shown = set(), start.astimezone(info).replace(tzinfo=None)
    moment = start
    while (moment := moment + timedelta(minutes=1)) <= end:
        wall = moment.astimezone(info).replace(tzinfo=None)
        if is_wild:
            if wall.minute in minute and wall.hour in hour:
                found.add(moment)
            continue
        while shown < wall:  # the latest time that the clock has shown or left out, up to what it shows now
            shown += timedelta(minutes=1)
            if shown.minute in minute and shown.hour in hour:
                found.add(moment)
    return found


def numbers(field: str, most: int) -> set[int]:
    chosen: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, _, high = ("0", "", str(most - 1)) if span == "*" else span.partition("-")
        chosen |= set(range(int(low), int(high or low) + 1, int(step or 1)))
    return chosen


def compare(zone: str, change: datetime, crons: Sequence[str] = CRONS) -> Iterator[str]:
    start, end = change - BEFORE, change + AFTER
    for cron in crons:
        recurrence = Recurrence("a", cron, time_zone=zone)
        found = set(takewhile(lambda moment: moment <= end, recurrence.following(start)))
        wanted = reference(cron, zone, start, end)
        if found != wanted:
            yield f"{zone} {change} {cron!r}: {sorted(found)} is not {sorted(wanted)}"


def test_every_kind_of_change_of_every_zone_from_2000_to_2037_agrees_with_a_reference() -> None:
    """By what the clock showed, and by how much it was changed."""
    kinds = {}
    for (zone, change), (before, after) in changes().items():
        kinds[(change + before).time(), after - before] = zone, change
    assert len(changes()) > 8000
    assert len(kinds) > 20
    assert not [fault for zone, change in kinds.values() for fault in compare(zone, change)]


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_every_change_of_every_zone_from_2000_to_2037_agrees_with_a_reference() -> None:
    some = ("30 2 * * *", "0,15 0-3 * * *", "*/20 * * * *", "30 */2 * * *")
    assert not [fault for zone, change in changes() for fault in compare(zone, change, some)]


@pytest.mark.parametrize(
    ("zone", "change"),
    [(BERLIN, "2026-03-29 01:00"), (BERLIN, "2026-10-25 01:00"), ("Australia/Lord_Howe", "2026-04-04 15:00"),
     ("Australia/Lord_Howe", "2026-10-03 15:30"), ("Pacific/Apia", "2011-12-30 10:00")],
)  # fmt: skip
def test_an_occurrence_that_was_found_is_the_first_after_any_moment_before_it(zone: str, change: str) -> None:
    """So nodes that begin to count at different moments agree."""
    start = at(change) - BEFORE
    for cron in CRONS:
        recurrence = Recurrence("a", cron, time_zone=zone)
        first = recurrence.after(start)
        assert first is not None
        for minutes in range(0, int((first - start).total_seconds() // 60), 7):
            assert recurrence.after(start + timedelta(minutes=minutes, microseconds=5)) == first
