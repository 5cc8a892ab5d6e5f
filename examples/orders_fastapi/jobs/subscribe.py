"""A job that is about nothing in the database."""

from __future__ import annotations

from cluster import Job


class SubscribeJob(Job):
    email: str

    async def perform(self) -> None:
        self.log.info("subscribed", email=self.email)
