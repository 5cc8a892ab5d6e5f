"""What somebody who comes from Celery writes first is refused with what to do, in the words of docs/from-celery.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from cluster import Job
from cluster.errors import ClusterError
from cluster.settings import load_settings

PAGE = (Path(__file__).parents[2] / "docs/from-celery.md").read_text(encoding="utf-8")


class SendJob(Job):
    customer_id: int

    def perform(self) -> None: ...


send = cast("Any", SendJob)


class User:
    """As of an ORM."""


def defined(annotations: dict[str, Any] | None = None, **body: Any) -> type[Job]:
    return type("AJob", (Job,), {"__annotations__": annotations or {}, "perform": lambda self: None} | body)


class Runs(Job):
    """Has no perform."""

    def run(self) -> None: ...


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (
            lambda: defined(perform=lambda self, customer_id: None),
            "AJob.perform takes 'customer_id', which nobody gives it: make it a field",
        ),
        (lambda: send(1), "SendJob takes its fields by name: SendJob(customer_id=…)"),
        (lambda: send(customer=1), "SendJob has no field 'customer': did you mean 'customer_id'?"),
        (lambda: defined({"user": User}), "AJob: a column can't hold a User: keep its id or its values, and load it in perform"),
        (lambda: defined({"users": list[User]}), "a column can't hold a User"),
        (lambda: defined(max_retries=3), "AJob.max_retries is neither an option nor a column"),
        (lambda: Runs().perform_later(None), "has no perform method, so it is not a job type"),  # type: ignore[call-overload]
        (
            lambda: load_settings({"CLUSTER_DATABASE_URL": "redis://localhost/0"}),
            "should be a libpq URI such as postgresql://user:password@host:5432/app",
        ),
    ],
)  # fmt: skip
def test_the_first_mistakes_are_refused_as_the_page_says(mistake: Callable[[], object], said: str) -> None:
    with pytest.raises(ClusterError) as caught:
        mistake()
    assert said in str(caught.value).replace("tests.unit.test_from_celery.", "")
    assert "list[User]" in repr(mistake) or said.removeprefix("AJob: ") in PAGE
