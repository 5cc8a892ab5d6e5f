"""The application's tables. Django notes a model that is not managed, too, and makes no table for it."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="ConfirmOrderRow",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("status", models.TextField()),
                ("run_at", models.DateTimeField()),
                ("attempts_count", models.IntegerField()),
                ("last_error", models.TextField(null=True)),
            ],
            options={"verbose_name": "confirmation", "db_table": "confirm_order_jobs", "managed": False},
        ),
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("article", models.TextField()),
                ("quantity", models.PositiveIntegerField()),
                ("confirmed_at", models.DateTimeField(null=True)),
            ],
            options={"db_table": "orders"},
        ),
    ]
