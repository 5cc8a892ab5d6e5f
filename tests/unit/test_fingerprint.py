"""The same error has the same fingerprint, whatever it was about, on every node and in every release; another error has another."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

import cluster
from cluster import statements
from cluster.error_text import describe
from cluster.fingerprint import FIXED, LENGTH, fingerprint, frames, kind_and_message, of_text, place, without_values

ROOT = "/srv/app"


def trace(message: str, *lines: str, kind: str = "ValueError") -> str:
    """Of functions given as `path:line:function`."""
    text = "Traceback (most recent call last):\n"
    for each in lines:
        path, line, function = each.rsplit(":", 2)
        text += f'  File "{path}", line {line}, in {function}\n    something()\n    ^^^^^^^^^^^\n'
    return f"{text}{kind}: {message}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no customer 42", "no customer 1,000,001"),
        ("balance is -3.50 EUR", "balance is 12 EUR"),
        ("no row a3f1c2d4-0000-4000-8000-0123456789ab", "no row deadbeef-aaaa-bbbb-cccc-dddddddddddd"),
        ("charge ch_3Nabc9 was declined", "charge ch_9ZZ was declined"),
        ("<Order object at 0x7f3a10> is odd", "<Order object at 0xffff01> is odd"),
        ("digest deadbeefcafeabad differs", "digest 00112233445566778899 differs"),
        ("can't open 'a.txt': it isn't there", "can't open 'it's b.txt': it isn't there"),
        ('unknown field "name"', 'unknown field "e-mail"'),
        ("bytes b'ab' left", "bytes b'' left"),
        ("no file /srv/releases/17/a.txt", "no file /tmp/x"),
        ("GET https://a.example/x?y=1 failed", "GET http://b.example:80/ failed"),
        ("ann@example.com has no address", "bob.b+1@mail.example.org has no address"),
        ("missing ids [1, 2, 3]", "missing ids [7]"),
        ("wrong {'a': 1, 'b': [2, None]}", "wrong {'c': (True, 2.5)}"),
        ("due at 2026-11-27 18:42:22.123+00:00", "due at 2025-01-01T00:00:00Z"),
        ("it said 'a very long val" + "u" * 300 + "e'", "it said 'short'"),
    ],
)
def test_values_make_no_difference(one: str, other: str) -> None:
    assert without_values(one) == without_values(other)
    assert of_text(trace(one, f"{ROOT}/jobs.py:7:perform")) == of_text(trace(other, f"{ROOT}/jobs.py:7:perform"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no customer 42", "no order 42"),
        ("(psycopg.errors.UniqueViolation) refused", "(psycopg.errors.CheckViolation) refused"),
        ("can't read", "can't write"),
        ("this and/or that", "this and that"),
    ],
)
def test_another_message_is_another_error(one: str, other: str) -> None:
    assert without_values(one) != without_values(other)
    assert of_text(trace(one, f"{ROOT}/jobs.py:7:perform")) != of_text(trace(other, f"{ROOT}/jobs.py:7:perform"))


def test_another_type_or_function_is_another_error() -> None:
    texts = [
        trace("no", "/srv/app/jobs.py:7:perform"),
        trace("no", "/srv/app/jobs.py:7:perform", kind="shop.errors.ValueError"),
        trace("no", "/srv/app/jobs.py:7:charge"),
        trace("no", "/srv/app/orders.py:7:perform"),
        trace("no", "/srv/app/jobs.py:7:perform", "/srv/app/orders.py:7:perform"),
        "no",
    ]
    assert len({of_text(text) for text in texts[:4]}) == 4
    assert of_text(texts[3]) == of_text(texts[4])
    assert len({of_text(text) for text in texts}) == 5


def test_lines_move_and_releases_lie_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("/srv/releases/17")
    monkeypatch.syspath_prepend("/opt/app")
    one = trace("no", "/srv/releases/17/shop/orders.py:7:perform", "/usr/lib/python3.11/json/decoder.py:355:raw_decode")
    other = trace(
        "no", "/opt/app/shop/orders.py:19:perform", "/opt/python/lib/python3.13/json/decoder.py:363:raw_decode"
    )
    unknown = trace("no", "/home/ann/18/orders.py:1:perform")
    assert of_text(one) == of_text(other)
    assert place(unknown, ["/srv"]) == "orders:perform"


def test_the_place_is_the_users_last_function() -> None:
    library = "/srv/app/.venv/lib/python3.12/site-packages/httpx/_client.py:9:send"
    inner = trace("no", f"{ROOT}/shop/__init__.py:3:charge", library, "<frozen importlib._bootstrap>:9:_gcd_import")
    assert place(inner, [ROOT]) == "shop:charge"
    assert place(trace("no", library), [ROOT]) == "httpx._client:send"
    assert place("no such customer", [ROOT]) == ""
    own = Path(cluster.__file__).parent / "enqueueing.py"
    assert place(trace("no", f"{ROOT}/a.py:1:perform", f"{own}:3:perform_later"), [ROOT]) == "a:perform"


def test_an_application_that_is_installed_is_the_users_code() -> None:
    packages = "/usr/lib/python3.12/site-packages"
    text = trace(
        "no", f"{packages}/shop/jobs.py:1:perform", f"{packages}/shop/pay.py:2:charge", f"{packages}/httpx/a.py:3:send"
    )
    assert place(text, []) == "shop.pay:charge"
    assert [frame.users for frame in frames(text)] == [True, True, False]


def test_of_causes_and_groups_the_last_error_counts() -> None:
    def cause(number: int) -> str:
        error = _raised(RuntimeError(f"no plan for {number}"))
        error.__cause__ = _raised(LookupError("missing"))
        return describe(error)

    def group(*numbers: int) -> str:
        errors = [_raised(LookupError(f"no customer {number}")) for number in numbers]
        return describe(ExceptionGroup("unhandled errors", errors))

    assert kind_and_message(cause(7)) == ("RuntimeError", "no plan for 7")
    assert of_text(cause(7)) == of_text(cause(8))
    assert kind_and_message(group(1, 2)) == ("LookupError", "no customer 2")
    assert place(group(1), sys.path).endswith(":_raised")
    assert of_text(group(1, 2)) == of_text(group(3))


def test_reasons_in_words_are_compared_too() -> None:
    assert kind_and_message("closed: 7 left") == ("", "closed: 7 left")
    assert fingerprint("failed", "the shop is closed until 9") == fingerprint("retry", "the shop is closed until 10")
    assert fingerprint("failed", None) == fingerprint("failed", "") != fingerprint("failed", "x")


def test_what_has_no_exception_has_a_word() -> None:
    assert fingerprint("timed_out", trace("no", "/srv/app/a.py:1:perform")) == "timeout"
    assert fingerprint("crashed", "the worker process died under this job") == "crash"
    assert f"'lost'::text), array_agg('{FIXED['lost']}'::text" in statements.text("rescue_jobs")
    claim = statements.for_table("claim_jobs", ("jobs",), bytes_of_row="1").decode()
    assert f"ARRAY['too_large'],\n                                    ARRAY['{FIXED['too_large']}']" in claim
    assert all(len(word) != LENGTH for word in FIXED.values())


def test_a_long_traceback_keeps_its_fingerprint_when_its_middle_is_cut() -> None:
    def fall(depth: int) -> None:
        if depth == 0:
            raise ValueError(f"no ground at {depth}")
        [fall, land][depth % 2](depth - 1)

    def land(depth: int) -> None:
        fall(depth)

    texts = []
    for depth in (200, 400):
        try:
            fall(depth)
        except ValueError as error:
            texts.append(describe(error))
    assert all("characters left out" in text for text in texts)
    assert of_text(texts[0]) == of_text(texts[1])


def test_hostile_texts_are_soon_done_with() -> None:
    dice = random.Random(7)
    letters = "'\"`«»“”„#/@.:-[](){}0a \\|+\n\x00\ud800é" + 'File "'
    texts = ["".join(dice.choice(letters) for _ in range(20_000)) for _ in range(20)]
    texts += [character * 20_000 for character in letters] + [
        "([{" * 6_000,
        "'a" * 10_000,
        "a@" * 10_000,
        "/." * 10_000,
    ]
    began = time.perf_counter()
    for text in texts:
        assert len(of_text(text)) == LENGTH
        assert len(of_text(trace(text, f"{text}:1:{text}"))) == LENGTH
    assert time.perf_counter() - began < 5


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except (LookupError, RuntimeError) as caught:
        return caught


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> None:
    of_text.cache_clear()
