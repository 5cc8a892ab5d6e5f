"""Orders, and what became of their jobs."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest

from examples.orders_django.models import ConfirmOrderRow, Order

admin.site.register(Order)


@admin.register(ConfirmOrderRow)
class ConfirmOrderRowAdmin(admin.ModelAdmin):
    """To look at only: the cluster's dashboard cancels and retries."""

    list_display = ("order", "status", "run_at", "attempts_count", "last_error")
    list_filter = ("status",)
    list_select_related = ("order",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: ConfirmOrderRow | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ConfirmOrderRow | None = None) -> bool:
        return False
