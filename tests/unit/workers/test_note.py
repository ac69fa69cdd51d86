"""The note that a child and the supervisor share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from taskq.workers.note import NO_TERMS, NOT, SIZE, TERMINATED, UNREAD, Note, Terms, create, running


@pytest.fixture
def notes() -> Iterator[int]:
    descriptor = create(4)
    yield descriptor
    os.close(descriptor)


def test_both_sides_see_what_runs(notes: int) -> None:
    child, supervisor = Note(notes, 1), Note(notes, 1)
    assert supervisor.number == 0
    assert child.begin(7, 12.5)
    assert (supervisor.number, supervisor.started) == (7, 12.5)
    child.end()
    assert supervisor.number == 0


def test_notes_do_not_touch_each_other(notes: int) -> None:
    one, other = Note(notes, 0), Note(notes, 1)
    one.begin(2**63, 1.0)
    one.recall(2**63 + 5)
    assert (other.number, other.started) == (0, 0.0)
    assert other.begin(5, 1.0)


def test_what_was_recalled_is_not_begun(notes: int) -> None:
    child, supervisor = Note(notes, 2), Note(notes, 2)
    child.begin(3, 1.0)
    supervisor.recall(6)
    child.end()
    assert [child.begin(number, 2.0) for number in (4, 5, 6)] == [False, False, False]
    assert supervisor.number == 0
    assert child.begin(7, 3.0), "what was given after the recall is run"


def test_a_second_recall_does_not_undo_the_first(notes: int) -> None:
    child, supervisor = Note(notes, 2), Note(notes, 2)
    child.begin(3, 1.0)
    supervisor.recall(6)
    supervisor.recall(3)
    child.end()
    assert [child.begin(number, 2.0) for number in (4, 6, 7)] == [False, False, True]


def test_what_runs_during_the_recall_goes_on(notes: int) -> None:
    child, supervisor = Note(notes, 2), Note(notes, 2)
    child.begin(3, 1.0)
    supervisor.recall(5)
    assert supervisor.number == 3


def test_another_child_begins_with_a_clear_note(notes: int) -> None:
    note = Note(notes, 3)
    note.begin(3, 1.0)
    note.recall(100)
    note.clear()
    assert (note.number, note.started) == (0, 0.0)
    assert note.begin(4, 1.0)


def test_a_note_outlives_the_process_that_wrote_it(notes: int) -> None:
    child = os.fork()
    if child == 0:
        Note(notes, 0).begin(9, 4.0)
        os._exit(0)
    os.waitpid(child, 0)
    assert Note(notes, 0).number == 9


def test_the_terms_of_a_task_are_those_of_the_one_that_runs(notes: int) -> None:
    child, supervisor = Note(notes, 1), Note(notes, 1)
    child.begin(7, 1.0)
    assert (supervisor.deadlines(), supervisor.terms()) == ((7, 0.0, UNREAD), NO_TERMS)
    terms = Terms("id-größe", 2.0, 3.0, 0.5, True, True)
    child.agree(terms)
    assert (supervisor.deadlines(), supervisor.terms()) == ((7, 2.0, 3.0), terms)
    supervisor.interrupt_for(TERMINATED)
    assert child.interrupt == TERMINATED
    child.end()
    child.begin(8, 4.0)
    assert (child.interrupt, supervisor.terms(), supervisor.deadlines()[2]) == (NOT, NO_TERMS, UNREAD)
    child.agree(Terms("x" * 500))
    assert supervisor.terms().task_id == "x" * len(supervisor.terms().task_id)
    assert supervisor.terms().task_id


def test_what_runs_can_be_read_out_of_the_bytes(notes: int) -> None:
    finished, unread, busy = Note(notes, 0), Note(notes, 1), Note(notes, 3)
    for note, number in ((finished, 1), (unread, 2), (busy, 3)):
        note.begin(number, 1.0)
    finished.agree(Terms("finished"))
    finished.end()
    busy.agree(Terms("busy", 5.0, 6.0))
    data = os.pread(notes, 1 << 16, 0)
    assert running(data) == {"busy": data.index(b"busy") // SIZE * SIZE}
