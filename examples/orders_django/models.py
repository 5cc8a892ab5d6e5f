"""An order, and a model on the table of the jobs that confirm orders."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    article = models.TextField()
    quantity = models.PositiveIntegerField()
    confirmed_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "orders"

    def __str__(self) -> str:
        return f"{self.quantity} × {self.article}"


class ConfirmOrderRow(models.Model):
    """To read and to join: `cluster migrate` makes the table, and `perform_later` writes it. Only what is to be shown."""

    order = models.ForeignKey(Order, models.DO_NOTHING)
    status = models.TextField()
    run_at = models.DateTimeField()
    attempts_count = models.IntegerField()
    last_error = models.TextField(null=True)

    class Meta:
        db_table = "confirm_order_jobs"
        managed = False
        verbose_name = "confirmation"
