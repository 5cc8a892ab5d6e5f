"""What a worker leaves behind in shared memory about what it is doing."""

from __future__ import annotations

import time
from array import array

import multiprocess
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.notes import Note, Notes, notes_size

SLOTS = 3


@pytest.fixture
def notes() -> Notes:
    return made(SLOTS)


def made(slots: int) -> Notes:
    return Notes(array("q", bytes(8 * notes_size(slots))), slots)


def test_a_new_worker_has_nothing_in_progress(notes: Notes) -> None:
    assert notes.in_progress() == []
    assert notes.on_stack() is None
    assert notes.last_beat == 0


def test_attempts_are_in_progress_from_begin_to_end(notes: Notes) -> None:
    notes.begin(0, 11, 1.5)
    notes.begin(2, 2**63 - 1, 2.5)
    assert notes.in_progress() == [Note(11, 1.5), Note(2**63 - 1, 2.5)]
    notes.end(0)
    assert notes.in_progress() == [Note(2**63 - 1, 2.5)]
    notes.begin(0, 12, 3.0)
    assert notes.in_progress() == [Note(12, 3.0), Note(2**63 - 1, 2.5)]


def test_the_attempt_that_has_the_loop_is_known_until_it_leaves(notes: Notes) -> None:
    notes.begin(0, 11, 1.0)
    notes.begin(1, 12, 1.0)
    notes.enter(1)
    assert notes.on_stack() == Note(12, 1.0)
    notes.leave()
    assert notes.on_stack() is None
    notes.enter(0)
    notes.end(0)
    assert notes.on_stack() is None, "it has ended"


def test_what_job_code_writes_over_the_notes_is_read_all_the_same() -> None:
    shared = array("q", [-1] * notes_size(SLOTS))
    assert Notes(shared, SLOTS).on_stack() is None
    assert len(Notes(shared, SLOTS).in_progress()) == SLOTS


def test_a_beat_is_on_the_clock_that_all_processes_share(notes: Notes) -> None:
    before = time.monotonic()
    notes.beat()
    assert before <= notes.last_beat <= time.monotonic()


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 2**63 - 1), st.floats(0, 1e9))))
def test_every_slot_shows_its_latest_attempt(begun: list[tuple[int, int, float]]) -> None:
    notes = made(SLOTS)
    latest: dict[int, tuple[object, ...]] = {}
    for slot, ticket, at in begun:
        notes.begin(slot, ticket, at)
        latest[slot] = (ticket, pytest.approx(at, abs=1e-6))
    assert [tuple(note) for note in notes.in_progress()] == [latest[slot] for slot in sorted(latest)]


def test_notes_outlive_the_process_that_wrote_them() -> None:
    context = multiprocess.get_context("fork")
    shared = context.RawArray("q", notes_size(SLOTS))
    process = context.Process(target=_write, args=(shared,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert Notes(shared, SLOTS).on_stack() == Note(42, 1.0)


def _write(shared: object) -> None:
    import os
    import signal

    notes = Notes(shared, SLOTS)
    notes.begin(1, 42, 1.0)
    notes.enter(1)
    os.kill(os.getpid(), signal.SIGKILL)
