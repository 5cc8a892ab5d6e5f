"""The application, for a server such as uvicorn."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.orders_django.settings")
application = get_asgi_application()
