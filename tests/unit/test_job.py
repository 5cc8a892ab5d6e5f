"""What a job class may look like, and what it says when it may not."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from datetime import date, timedelta
from typing import Annotated, Any, ClassVar

import pydantic
import pytest
import structlog

import cluster
from cluster import ConstantBackoff, Job, configure
from cluster.errors import ClusterError, JobArgumentError, JobDefinitionError, SettingsError
from cluster.job import definition, table_name
from cluster.job_checks import OPTIONS


class EmailJob(Job):
    customer_id: int
    subject: str = "hello"

    def perform(self) -> str:
        return f"{self.customer_id}: {self.subject}"


def define(annotations: dict[str, Any] | None = None, /, **body: Any) -> Any:
    def perform(self: Job) -> None: ...

    return type("MadeJob", (Job,), {"__annotations__": annotations or {}, "perform": perform} | body)


def refusal(annotations: dict[str, Any] | None = None, /, **body: Any) -> str:
    with pytest.raises(JobDefinitionError) as caught:
        define(annotations, **body)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("MadeJob")
    return message


# --- names ---


@pytest.mark.parametrize(
    ("class_name", "table"),
    [
        ("EmailCustomersJob", "email_customers_jobs"),
        ("EmailCustomers", "email_customers_jobs"),
        ("HTTPPingJob", "http_ping_jobs"),
        ("S3UploadJob", "s3_upload_jobs"),
        ("Job", "job_jobs"),
    ],
)
def test_a_table_is_named_after_its_class(class_name: str, table: str) -> None:
    assert table_name(class_name) == table


def test_a_class_may_choose_its_table() -> None:
    assert definition(define(table="shop.mails")).table == "shop.mails"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("max_attempt", "max_attempts"),
        ("timout", "timeout"),
        ("prioritiy", "priority"),
        ("concurency_key", "concurrency_key"),
        ("retension", "retention"),
    ],
)
def test_a_misspelt_option_is_refused(wrong: str, right: str) -> None:
    assert f"did you mean {right!r}?" in refusal(**{wrong: 3})


@pytest.mark.parametrize(("wrong", "right"), [("after_sucess", "after_success"), ("before_performs", "before_perform")])
def test_a_misspelt_hook_is_refused(wrong: str, right: str) -> None:
    def hook(self: Job) -> None: ...

    assert f"did you mean {right!r}?" in refusal(**{wrong: hook})


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_with_an_annotation_is_refused(option: str) -> None:
    message = refusal({option: int}, **{option: 3})
    assert "its annotation makes it a column" in message
    assert f"`{option} = …`" in message


def test_a_misspelt_option_with_an_annotation_is_refused() -> None:
    assert "did you mean 'max_attempts'?" in refusal({"max_attempt": int}, max_attempt=3)


@pytest.mark.parametrize("annotation", [ClassVar[int], ClassVar, "ClassVar[int]", "typing.ClassVar[int]"])
def test_a_class_variable_is_no_column(annotation: Any) -> None:
    made = define({"limit": annotation}, limit=3)
    assert definition(made).columns == ()


def test_a_misspelt_option_as_class_variable_is_refused() -> None:
    assert "did you mean 'max_attempts'?" in refusal({"max_attempt": "ClassVar[int]"}, max_attempt=3)


@pytest.mark.parametrize(
    "name",
    ["id", "attempt", "row", "now", "log", "perform", "perform_later", "after_failure", "status", "run_at"],
)
def test_a_field_named_like_a_public_attribute_is_refused(name: str) -> None:
    assert "rename the field" in refusal({name: int})


@pytest.mark.parametrize("name", ["locked_by", "created_at", "traceparent", "parked"])
def test_a_field_named_like_a_standard_column_is_refused(name: str) -> None:
    assert "rename the field" in refusal({name: int})


@pytest.mark.parametrize("name", ["_private", "x" * 64, "ä" * 32])
def test_a_field_that_can_be_no_column_is_refused(name: str) -> None:
    assert "1 to 63 bytes and no underscore in front" in refusal({name: int})


def test_a_value_without_annotation_is_neither_option_nor_column() -> None:
    message = refusal(customer=3)
    assert "annotate a column, write a constant in capitals or as ClassVar" in message
    assert all(option in message for option in OPTIONS)


def test_constants_methods_and_properties_are_welcome() -> None:
    made: Any = define(
        LIMIT=3, address=property(lambda self: "a"), send=lambda self: "b", make=staticmethod(lambda: "c")
    )
    job = made()
    assert (made.LIMIT, job.address, job.send(), job.make()) == (3, "a", "b", "c")


def test_fields_may_be_named_like_methods_of_pydantic_and_parts_of_a_date() -> None:
    class OddJob(Job):
        copy: str
        json: int
        schema: bool
        month: date
        dict: float = 1.5
        model_fields: str = "m"
        validate: int = 1

        def perform(self) -> None: ...

    job = OddJob(copy="c", json=1, schema=True, month=date(2026, 1, 1))
    assert (job.copy, job.json, job.schema, job.month) == ("c", 1, True, date(2026, 1, 1))
    assert list(definition(OddJob).column_names) == [
        "copy",
        "json",
        "schema",
        "month",
        "dict",
        "model_fields",
        "validate",
    ]
    assert copy.copy(job) == job


# --- options ---


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("table", 3, "table or schema.table"),
        ("queue", "", "not empty"),
        ("queue", None, "not empty"),
        ("priority", 0, "from 1 (first) to 100"),
        ("priority", 101, "from 1 (first) to 100"),
        ("priority", True, "from 1 (first) to 100"),
        ("priority", "50", "from 1 (first) to 100"),
        ("max_attempts", -1, "a whole number of executions"),
        ("max_attempts", None, "a whole number of executions"),
        ("max_crashes", 0, "from 1"),
        ("timeout", 60, "a timedelta above zero, or None"),
        ("timeout", timedelta(0), "a timedelta above zero, or None"),
        ("backoff", timedelta(seconds=30), "ConstantBackoff(timedelta(seconds=30))"),
        ("backoff", lambda self, attempt: None, "a callable from the attempt's number"),
        ("backoff", ConstantBackoff, "ConstantBackoff(timedelta(seconds=30))"),
        ("max_concurrency", 0, "None for no limit"),
        ("concurrency_key", 3, "a field's name"),
        ("unique", "customer_id", "a tuple of different fields"),
        ("unique", ("customer_id", "customer_id"), "a tuple of different fields"),
        ("unique_while_running", 1, "True or False"),
        ("isolation", "threads", '"process" or "thread"'),
        ("isolation", [], '"process" or "thread"'),
        ("retention", 30, "None to keep rows for ever"),
        ("retention_failed", timedelta(days=-1), "None to keep rows for ever"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused(option: str, value: Any, wanted: str) -> None:
    message = refusal(**{option: value})
    assert f"MadeJob.{option} must be" in message
    assert wanted in message


@pytest.mark.parametrize("table", [".jobs", "jobs.", "a..b", "a.b.c", "x" * 64, "ä" * 32, "sch." + "x" * 64])
def test_a_table_name_that_postgres_would_misread_is_refused(table: str) -> None:
    assert "table must be" in refusal(table=table)


def test_a_class_name_too_long_for_a_table_is_refused() -> None:
    with pytest.raises(JobDefinitionError, match="63 bytes"):
        type("X" + "y" * 60, (Job,), {"perform": lambda self: None})


def test_what_is_unique_must_be_fields() -> None:
    message = refusal({"customer_id": int}, unique=("custmer_id",))
    assert "unique names no field of the class: 'custmer_id': did you mean 'customer_id'?" in message
    message = refusal({"customer_id": int}, unique_while_running=True)
    assert "unique_while_running needs to know what is unique" in message


def test_a_concurrency_key_must_be_a_field() -> None:
    message = refusal({"customer_id": int}, concurrency_key="custmer_id")
    assert "did you mean 'customer_id'?" in message


def test_any_callable_is_a_backoff_and_stays_one() -> None:
    made = define(backoff=lambda attempt: timedelta(seconds=attempt))
    assert made.backoff(3) == made().backoff(3) == timedelta(seconds=3)


def test_options_are_inherited_and_overridden() -> None:
    class Base(Job):
        queue = "mail"
        max_attempts = 3

    class First(Base):
        def perform(self) -> None: ...

    class Second(Base):
        max_attempts = 4

        def perform(self) -> None: ...

    assert (First.queue, First.max_attempts, Second.queue, Second.max_attempts) == ("mail", 3, "mail", 4)


# --- hooks ---


def test_the_definition_names_only_the_hooks_that_the_class_has() -> None:
    made = define(before_perform=lambda self: None, after_failure=lambda self, error, final: None)
    assert definition(made).hooks == {"before_perform", "after_failure"}
    assert definition(define()).hooks == frozenset()


def test_an_async_hook_of_a_plain_job_is_refused() -> None:
    async def hook(self: Job) -> None: ...

    assert "make both async, or neither" in refusal(after_success=hook)


# --- fields ---


def test_a_class_without_perform_is_only_a_base() -> None:
    class Base(Job):
        tenant: int

    with pytest.raises(JobDefinitionError, match="no perform method"):
        Base(tenant=1)

    class Child(Base):
        customer_id: int

        def perform(self) -> None: ...

    assert definition(Child).column_names == ("tenant", "customer_id")
    assert Child(tenant=1, customer_id=2).tenant == 1


def test_a_mixin_of_methods_is_inherited() -> None:
    class Greeting:
        def greet(self) -> str:
            return "hello"

    class GreetJob(Greeting, Job):
        def perform(self) -> str:
            return self.greet()

    assert GreetJob().perform() == "hello"


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(JobArgumentError, match="did you mean 'customer_id'") as caught:
        EmailJob(custmer_id=3)  # type: ignore[call-arg]
    assert "its fields are: customer_id, subject" in str(caught.value)


def test_missing_and_misfit_arguments_are_refused_in_one_line() -> None:
    with pytest.raises(JobArgumentError) as caught:
        EmailJob(customer_id="x" * 500, subject=3)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith("EmailJob: customer_id: Input should be a valid integer")
    assert "; subject: " in message
    assert len(message) < 400
    with pytest.raises(JobArgumentError, match="EmailJob: customer_id: Field required"):
        EmailJob()  # type: ignore[call-arg]


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        EmailJob(3)  # type: ignore[call-arg]


def test_validators_see_and_change_values() -> None:
    class CheckedJob(Job):
        email: str
        low: int = pydantic.Field(default=0, ge=0)
        high: int = 10

        @pydantic.field_validator("email")
        @classmethod
        def lower(cls, value: str) -> str:
            return value.lower()

        @pydantic.model_validator(mode="after")
        def in_order(self) -> CheckedJob:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

        def perform(self) -> None: ...

    assert CheckedJob(email="A@B").email == "a@b"
    with pytest.raises(JobArgumentError, match="low is above high"):
        CheckedJob(email="a", low=11)
    with pytest.raises(JobArgumentError, match="greater than or equal to 0"):
        CheckedJob(email="a", low=-1)


def test_fields_are_read_only_and_other_attributes_are_not() -> None:
    job = EmailJob(customer_id=1)
    with pytest.raises(AttributeError, match="read-only: a job's row is not written back"):
        job.customer_id = 2
    job.attempt = 3
    assert (job.customer_id, job.attempt) == (1, 3)


def test_mutable_defaults_are_each_jobs_own() -> None:
    class TagsJob(Job):
        tags: list[str] = []  # noqa: RUF012 - a job class copies it
        options: Annotated[dict[str, int], "any"] = {"a": 1}  # noqa: RUF012

        def perform(self) -> None: ...

    TagsJob().tags.append("x")
    TagsJob().options["b"] = 2
    assert (TagsJob().tags, TagsJob().options) == ([], {"a": 1})


def test_a_type_that_pydantic_does_not_know_is_refused() -> None:
    assert "Odd" in refusal({"when": type("Odd", (), {})})


# --- configure ---


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that `configure` may change is put back."""
    for name in (*OPTIONS, "__logger__"):
        monkeypatch.setattr(Job, name, getattr(Job, name))
    monkeypatch.setattr("cluster.configuration._database_url", None)


@pytest.mark.usefixtures("restored")
def test_configured_defaults_hold_for_classes_that_do_not_choose() -> None:
    configure(defaults={"max_attempts": 5, "timeout": timedelta(minutes=1)})
    assert define().max_attempts == 5
    assert define().timeout == timedelta(minutes=1)
    assert define(max_attempts=7).max_attempts == 7


@pytest.mark.usefixtures("restored")
def test_a_configured_backoff_is_not_taken_for_a_method() -> None:
    configure(defaults={"backoff": lambda attempt: timedelta(seconds=attempt)})
    assert define().backoff(2) == timedelta(seconds=2)
    assert define()().backoff(2) == timedelta(seconds=2)


@pytest.mark.usefixtures("restored")
def test_wrong_defaults_are_refused_and_none_is_set() -> None:
    with pytest.raises(JobDefinitionError, match="did you mean 'max_attempts'"):
        configure(defaults={"priority": 7, "max_attempt": 5})
    with pytest.raises(JobDefinitionError, match=r"max_crashes must be a whole number from 1, not 0"):
        configure(defaults={"priority": 7, "max_crashes": 0})
    with pytest.raises(JobDefinitionError, match="there is no default 'table'"):
        configure(defaults={"table": "jobs"})
    assert Job.priority == 50


@pytest.mark.parametrize(
    "perform",
    [
        "async def perform(self, customer_id): ...",
        "def perform(self, customer_id: int) -> None: ...",
        "async def perform(self, *, customer_id): ...",
    ],
)
def test_a_perform_that_takes_an_argument_is_refused_when_defined(perform: str) -> None:
    with pytest.raises(JobDefinitionError, match="perform takes 'customer_id', which nobody gives it: make it a field"):
        exec(f"class LikeCeleryJob(Job):\n    {perform}", {"Job": Job})


def test_a_perform_may_take_what_it_can_do_without() -> None:
    class FreeJob(Job):
        async def perform(self, dry_run: bool = False, *more: object, **others: object) -> None: ...

    assert isinstance(FreeJob(), Job)


def test_fields_are_given_by_name() -> None:
    with pytest.raises(JobArgumentError, match=r"EmailJob takes its fields by name: EmailJob\(customer_id=…"):
        EmailJob(7)  # type: ignore[call-arg]


@pytest.mark.usefixtures("restored")
def test_a_job_logs_to_the_configured_structlog_logger() -> None:
    events: list[dict[str, Any]] = []

    def keep(_logger: Any, _method: str, event: Any) -> Any:
        events.append(dict(event))
        raise structlog.DropEvent

    configure(logger=structlog.wrap_logger(None, processors=[keep]).bind(app="shop"))
    EmailJob(customer_id=1).log.info("sent", size=3)
    assert events == [
        {"event": "sent", "app": "shop", "job_type": "EmailJob", "job_id": None, "attempt": None, "size": 3}
    ]


@pytest.mark.usefixtures("restored")
def test_a_job_logs_to_the_configured_stdlib_logger(caplog: pytest.LogCaptureFixture) -> None:
    configure(logger=logging.getLogger("shop"))
    caplog.set_level("INFO")
    EmailJob(customer_id=1).log.info("sent %s", "twice", name="clashes with logging's own")
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("shop", "sent twice")
    assert vars(record)["job_type"] == "EmailJob"
    assert vars(record)["name_"] == "clashes with logging's own"


@pytest.mark.usefixtures("restored")
def test_a_logger_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="structlog or of logging"):
        configure(logger="shop")


# --- performing here ---


def test_perform_now_returns_what_perform_returns() -> None:
    assert EmailJob(customer_id=1).perform_now() == "1: hello"


class Recording(Job):
    fails: bool = False

    def before_perform(self) -> None:
        self.calls: list[Any] = ["before_perform"]

    def after_perform(self) -> None:
        self.calls.append("after_perform")

    def after_success(self) -> None:
        self.calls.append("after_success")

    def after_failure(self, error: BaseException, final: bool) -> None:
        self.calls.append((str(error), final))


class PlainRecordingJob(Recording):
    def perform(self) -> int:
        self.calls.append("perform")
        if self.fails:
            raise RuntimeError("broken")
        return 7


class AsyncRecordingJob(Recording):
    async def after_success(self) -> None:  # type: ignore[override]
        self.calls.append("after_success")

    async def perform(self) -> int:
        self.calls.append("perform")
        if self.fails:
            raise RuntimeError("broken")
        return 7


@pytest.mark.parametrize("job_class", [PlainRecordingJob, AsyncRecordingJob])
def test_perform_now_calls_the_hooks_in_order(job_class: type[Recording]) -> None:
    job = job_class()
    assert job.perform_now() == 7
    assert job.calls == ["before_perform", "perform", "after_success", "after_perform"]


@pytest.mark.parametrize("job_class", [PlainRecordingJob, AsyncRecordingJob])
def test_perform_now_raises_what_perform_raises_after_the_hooks(job_class: type[Recording]) -> None:
    job = job_class(fails=True)
    with pytest.raises(RuntimeError, match="broken"):
        job.perform_now()
    assert job.calls == ["before_perform", "perform", ("broken", True), "after_perform"]


@pytest.mark.parametrize("job_class", [PlainRecordingJob, AsyncRecordingJob])
async def test_aperform_now_performs_both_kinds_of_job(job_class: type[Recording]) -> None:
    job = job_class()
    assert await job.aperform_now() == 7
    assert job.calls == ["before_perform", "perform", "after_success", "after_perform"]


async def test_perform_now_of_an_async_job_inside_a_loop_says_what_to_write() -> None:
    with pytest.raises(ClusterError, match=r"await job\.aperform_now\(\)"):
        AsyncRecordingJob().perform_now()


def test_an_error_in_a_hook_afterwards_changes_nothing() -> None:
    class HookJob(Job):
        def after_success(self) -> None:
            raise RuntimeError("hook")

        def perform(self) -> int:
            return 7

    with structlog.testing.capture_logs() as lines:
        assert HookJob().perform_now() == 7
    assert [(line["event"], line["hook"]) for line in lines] == [("hook failed", "after_success")]


# --- the package ---


def test_the_public_names_exist() -> None:
    for name in cluster.__all__:
        assert getattr(cluster, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Jbo'"):
        cluster.Jbo  # noqa: B018


def test_importing_the_package_does_not_import_the_pool() -> None:
    code = "import cluster, sys, json; print(json.dumps('psycopg_pool' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
