"""What a customer need not wait for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from cluster import Job, References
from examples.orders_fastapi.database import Order, new_session


class ConfirmOrderJob(Job):
    order_id: Annotated[int, References("orders.id", on_delete="cascade")]

    async def perform(self) -> None:
        async with new_session.begin() as session:
            order = await session.get_one(Order, self.order_id)
            order.confirmed_at = order.confirmed_at or datetime.now(UTC)  # it may run twice
