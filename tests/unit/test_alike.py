"""Errors of jobs that are the same but for their values."""

from __future__ import annotations

from cluster.dashboard.alike import alike

TRACE = 'Traceback (most recent call last):\n  File "/app/shop/mail.py", line 7, in send\n    connect()\n'


def test_errors_that_differ_in_numbers_addresses_and_quoted_values_are_one() -> None:
    texts = [f"{TRACE}shop.mail.MailServerError: 421 mx{n}.example.org: too many from 192.0.2.{n}" for n in range(9)]
    texts.append("LookupError: no customer 'ann'")
    first, second = alike(texts, 8)
    assert (first.jobs, second.jobs) == (9, 1)
    assert first.shown == "shop.mail.MailServerError: ….example.org: too many from …"
    assert all(first.pattern in text for text in texts[:9]), "a filter by it finds all of them"
    assert second.shown == "LookupError: no customer …"


def test_only_the_most_frequent_ones_are_told_and_jobs_without_a_text_count() -> None:
    assert [(each.shown, each.jobs) for each in alike([None, None, "a", "b", "b", "b"], 2)] == [
        ("b", 3), ("(no error text)", 2),
    ]  # fmt: skip
