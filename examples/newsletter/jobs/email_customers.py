"""Sends the newsletter to one customer. An async job: one worker process performs many of them at once."""

from __future__ import annotations

import asyncio
import os
import smtplib
from datetime import timedelta
from email.message import EmailMessage
from functools import cache
from typing import Annotated

from cluster import AsyncClient, Cancel, ExponentialBackoff, Job, References


class EmailCustomersJob(Job):
    """Table email_customers_jobs. A customer who is deleted takes the waiting mail along."""

    customer_id: Annotated[int, References("customers.id", on_delete="cascade")]

    queue = "email"
    max_concurrency = 16  # over all nodes: what the mail server allows
    timeout = timedelta(seconds=30)
    backoff = ExponentialBackoff(timedelta(seconds=0.5), jitter=0.5)

    async def perform(self) -> Cancel | None:
        async with database().connection() as connection:
            cursor = await connection.execute("SELECT name, email FROM customers WHERE id = %s", [self.customer_id])
            customer = await cursor.fetchone()
        if customer is None:
            return Cancel("the customer has gone")
        name, address = customer
        # smtplib blocks, so it works in a thread; an error, such as a refused recipient, means another attempt.
        await asyncio.to_thread(send, newsletter(name, address, f"<{self.id}@newsletter.example>"))
        return None


@cache
def database() -> AsyncClient:
    """A pool of connections to CLUSTER_DATABASE_URL, one for each worker process; it opens when it is first used."""
    return AsyncClient(max_size=4)


def newsletter(name: str, address: str, message_id: str) -> EmailMessage:
    """The same id at every attempt: a job may run again after a crash, and a mail program shows the mail once."""
    message = EmailMessage()
    message["Subject"] = "What is new"
    message["From"] = "editor@newsletter.example"
    message["To"] = address
    message["Message-ID"] = message_id
    message.set_content(f"Dear {name},\n\nhere is what happened this week.\n")
    return message


def send(message: EmailMessage) -> None:
    """By SMTP, to SMTP_HOST and SMTP_PORT."""
    host, port = os.environ.get("SMTP_HOST", "127.0.0.1"), int(os.environ.get("SMTP_PORT", "8025"))
    with smtplib.SMTP(host, port, local_hostname="newsletter.example", timeout=10) as server:
        server.send_message(message)
