"""What a customer need not wait for."""

from __future__ import annotations

from typing import Annotated

from django.db import close_old_connections
from django.utils import timezone

from cluster import Job, References
from examples.orders_django.models import Order


class DjangoJob(Job):
    """Looks after the connection as Django does around a request."""

    def before_perform(self) -> None:
        close_old_connections()

    def after_perform(self) -> None:
        close_old_connections()


class ConfirmOrderJob(DjangoJob):
    order_id: Annotated[int, References("orders.id", on_delete="cascade")]

    isolation = "thread"

    def perform(self) -> None:
        Order.objects.filter(id=self.order_id, confirmed_at=None).update(confirmed_at=timezone.now())
