"""The jobs of the orders. A node imports this package, and with it Django; in the application that is there already."""

from __future__ import annotations

import os

import django
from django.apps import apps

if not apps.ready:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.orders_django.settings")
    django.setup()
