"""One request that enqueues in its transaction, and one that shows what became of it."""

from __future__ import annotations

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST

from examples.orders_django.jobs.confirm_order import ConfirmOrderJob
from examples.orders_django.models import ConfirmOrderRow, Order

IN_STOCK = 10


class OutOfStockError(Exception):
    """The order can't be placed."""


@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    try:
        with transaction.atomic():  # the order and its job, or neither
            order = Order.objects.create(article=request.POST["article"], quantity=int(request.POST["quantity"]))
            ConfirmOrderJob(order_id=order.pk).perform_later(connection)
            if order.quantity > IN_STOCK:
                raise OutOfStockError
    except OutOfStockError:
        return JsonResponse({"error": "out of stock"}, status=409)
    return JsonResponse({"id": order.pk}, status=201)


def show_order(_request: HttpRequest, order_id: int) -> JsonResponse:
    order = get_object_or_404(Order, pk=order_id)
    jobs = ConfirmOrderRow.objects.filter(order=order).values_list("status", flat=True)
    return JsonResponse({"confirmed": order.confirmed_at is not None, "jobs": list(jobs)})
