from __future__ import annotations

from taskq.results.store import ResultStore
from tests.conformance.results.support import Backend, fresh
from tests.support import eventually


def test_the_last_document_of_a_name_stands(backend: Backend, store: ResultStore) -> None:
    name = fresh()
    assert store.document(name) is None
    store.keep(name, b"\x00first", 60.0)
    store.keep(name, b"\xffsecond", 60.0)
    assert backend.open().document(name) == b"\xffsecond"


def test_a_document_has_a_time_to_live_of_its_own(store: ResultStore) -> None:
    short, long = fresh(), fresh()
    store.keep(long, b"long", 60.0)
    store.keep(short, b"short", 0.05)
    eventually(lambda: store.document(short) is None, "the document is over its time")
    store.expire()
    assert store.document(long) == b"long"
    store.keep(short, b"again", 60.0)
    assert store.document(short) == b"again"
