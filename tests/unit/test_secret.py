"""What is left out of errors, and of what a job class says of its jobs."""

from __future__ import annotations

import asyncio
import json
import traceback
from typing import Annotated, Any

import pytest

from cluster import Fail, Job, Secret
from cluster.error_text import LONGEST
from cluster.errors import JobArgumentError
from cluster.job import definition
from cluster.secret import MASK, mask
from cluster.worker.perform import Attempt, Performer, Verdict, refuse_row

WORD = "hunter2-\n'\"\\ü"


class SignInJob(Job):
    account: int
    password: Annotated[str, Secret()]
    card: Annotated[dict[str, Any] | None, Secret()] = None
    max_attempts = 1

    def perform(self) -> Any:
        if self.account == 1:
            raise ValueError(f"wrong: {self.password}, {self.password!r}, {json.dumps(self.card)}")
        if self.account == 2:
            return Fail(f"no: {self.password}")
        raise RuntimeError("x" * (LONGEST // 2 - 5) + self.password + "y" * LONGEST)


def outcome(job: SignInJob) -> Verdict:
    async def go() -> Verdict:
        return await asyncio.get_running_loop().run_in_executor(
            None, Attempt(Performer.of(SignInJob), job, 1).perform_plain
        )

    return asyncio.run(go())


def test_a_secret_does_not_stand_in_the_error_of_its_job_however_it_is_written() -> None:
    card = {"number": "4000-1234", "of": ["Ann Other"]}
    error = outcome(SignInJob(account=1, password=WORD, card=card)).error or ""
    assert f"ValueError: wrong: {MASK}, '{MASK}'" in error
    assert not [word for word in ("hunter2", "4000-1234", "Ann Other") if word in error]
    assert outcome(SignInJob(account=2, password=WORD)).error == f"no: {MASK}"


def test_a_secret_where_a_long_error_is_cut_is_not_shown_in_part() -> None:
    assert "hunter" not in (outcome(SignInJob(account=3, password="hunter2" * 20)).error or "")


def test_a_short_secret_is_masked_as_a_word_and_a_tiny_one_not_at_all() -> None:
    assert mask("pin 1234 of 12345, line 12", ["1234", 12]) == f"pin {MASK} of 12345, line 12"
    assert mask("abc abcd", ["abc"]) == f"{MASK} abcd"
    assert mask("raw b'\\x00key-1'", [b"\x00key-1"]) == f"raw b'{MASK}'"
    assert mask("True None", [True, None]) == "True None"


def test_a_row_that_does_not_fit_is_refused_without_its_secrets() -> None:
    performer = Performer.of(SignInJob)
    values = (1, 12345678, None)
    with pytest.raises(Exception, match="valid string") as raised:
        performer.build(values)
    said = refuse_row(raised.value, performer.secrets_of(values)).error or ""
    assert "password: Input should be a valid string" in said
    assert "12345678" not in said


def test_neither_the_repr_of_a_job_nor_a_wrong_argument_shows_a_secret() -> None:
    assert definition(SignInJob).secrets == ("password", "card")
    assert repr(SignInJob(account=1, password=WORD)) == f"SignInJob(account=1, password={MASK}, card={MASK})"
    wrong: Any = b"\xff-" + b"hunter2"
    with pytest.raises(JobArgumentError) as raised:
        SignInJob(account=1, password=wrong)
    shown = "".join(traceback.format_exception(raised.value)).replace('"hunter2".encode', "")
    assert "hunter2" not in shown
