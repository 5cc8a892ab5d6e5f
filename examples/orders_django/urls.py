"""Where what is."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from examples.orders_django.views import place_order, show_order

urlpatterns = [
    path("admin/", admin.site.urls),
    path("orders", place_order),
    path("orders/<int:order_id>", show_order),
]
