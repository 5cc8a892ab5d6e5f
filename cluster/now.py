"""What `self.now` tells a job of the time, whenever it is asked."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo


class Now:
    """UTC, or with `local=True` the time zone of the job's schedule; without a schedule that is UTC as well. Names are English."""

    def __init__(self, zone: str) -> None:
        self._zone = zone

    def minute(self, *, local: bool = False) -> int:
        """0 to 59."""
        return self._moment(local=local).minute

    def hour(self, *, local: bool = False) -> int:
        """0 to 23."""
        return self._moment(local=local).hour

    def day(self, *, local: bool = False) -> str:
        """Mon, Tue, Wed, Thu, Fri, Sat, Sun."""
        return _DAYS[self._moment(local=local).weekday()]

    def day_num(self, *, local: bool = False) -> int:
        """1, Monday, to 7, Sunday."""
        return self._moment(local=local).isoweekday()

    def day_month(self, *, local: bool = False) -> int:
        """1 to 31."""
        return self._moment(local=local).day

    def week_num(self, *, local: bool = False) -> int:
        """0 to 53: the year's first Monday begins week 1."""
        return int(self._moment(local=local).strftime("%W"))

    def month(self, *, local: bool = False) -> str:
        """Jan to Dec."""
        return _MONTHS[self._moment(local=local).month - 1]

    def month_num(self, *, local: bool = False) -> int:
        """1 to 12."""
        return self._moment(local=local).month

    def _moment(self, *, local: bool) -> datetime:
        return datetime.now(ZoneInfo(self._zone) if local else UTC)


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
