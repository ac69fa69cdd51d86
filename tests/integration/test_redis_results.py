"""What only Redis has: its URLs, its keys, and Celery's own backend beside ours."""

from __future__ import annotations

import gc
import itertools
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery.app.task import Context
from celery.result import AsyncResult, GroupResult

from taskq.errors import BackendError, ConfigurationError
from taskq.results import open_store
from taskq.results.redis import RedisResults
from taskq.results.store import Barrier, Chords, Gathering, Part
from tests.conformance.results.support import Backend, chords_of, fetched, fresh, process, record
from tests.redis_server import Redis, running_redis
from tests.support import close_celery, eventually

# Celery calls it, and redis-py 8 says so.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def store(redis: Redis) -> Iterator[RedisResults]:
    store = RedisResults(redis.url, 60.0)
    yield store
    store.close()


@pytest.fixture
def chords(store: RedisResults) -> Chords:
    return chords_of(store)


@pytest.fixture
def celery(redis: Redis) -> Iterator[Celery]:
    """Celery's client, whose broker is a mere list."""
    app = Celery("shop", broker="memory://", backend=redis.url, set_as_current=False)
    app.conf.task_default_queue = fresh()
    yield app
    # Results of Celery's talk to the server when they are collected: while it still runs.
    gc.collect()
    close_celery(app)


def client_of(store: RedisResults) -> Any:
    return store._server.client


@pytest.fixture(scope="module")
def tls_server(certificates: dict[str, Path]) -> Iterator[Redis]:
    with running_redis(certificates) as server:
        yield server


def test_tls_checks_authority_and_host(tls_server: Redis, certificates: dict[str, Path]) -> None:
    known = f"ssl_ca_certs={certificates['cacertfile']}"
    port = tls_server.tls_port
    end = record(fresh())
    for place in (f"localhost:{port}?{known}", f"localhost:{port}?{known}&ssl_cert_reqs=CERT_REQUIRED"):
        store = open_store(f"rediss://{place}", 60.0)
        store.store([end])
        assert store.wait(end.id, 5.0) == end
        assert store.wait(fresh(), 0.01) is None
        store.close()
    for place in (f"localhost:{port}", f"127.0.0.1:{port}?{known}"):
        with pytest.raises(BackendError, match="certificate verify failed"):
            open_store(f"rediss://{place}", 60.0).fetch(["a"])
    for options in (f"{known}&ssl_check_hostname=false", "ssl_cert_reqs=none"):
        store = open_store(f"rediss://127.0.0.1:{port}?{options}", 60.0)
        assert fetched(store, end.id) == end
        store.close()


def test_a_unix_socket_and_another_database(redis: Redis, store: RedisResults) -> None:
    beside = open_store(f"redis+socket://{redis.socket}?virtual_host=1&decode_responses=True", 60.0)
    end = record(fresh())
    beside.store([end])
    assert fetched(beside, end.id) == end
    assert fetched(store, end.id) is None
    beside.close()


@pytest.mark.parametrize("wrong", ["localhost:99999", "localhost?socket_timeout=soon", "localhost?colour=red"])
def test_a_url_that_makes_no_sense_is_told_of_at_once_without_its_password(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="Redis") as caught:
        open_store(f"redis://shop:secret@{wrong}", 60.0)
    assert "secret" not in str(caught.value)


def test_a_refused_password_does_not_show(redis: Redis) -> None:
    with pytest.raises(BackendError) as caught:
        open_store(redis.url.replace("//", "//shop:secret@"), 60.0).fetch(["a"])
    assert "secret" not in str(caught.value)


def test_a_missing_driver_says_what_to_install() -> None:
    code = "import sys; sys.modules['redis'] = None\nfrom taskq.results import open_store; open_store('redis://h', 1.0)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "ConfigurationError" in ended.stderr
    assert "pip install 'taskq-core[redis]'" in ended.stderr


def test_nothing_of_a_dead_waiter_is_left_on_the_server(redis: Redis, store: RedisResults) -> None:
    name = fresh()
    channel = f"celery-task-meta-{name}"

    def subscribers() -> int:
        [(_, count)] = client_of(store).pubsub_numsub(channel)
        return int(count)

    with process(Backend("redis", redis.url), "wait", name) as waiter:
        eventually(lambda: subscribers() == 1, "the process waits")
        waiter.kill()
    eventually(lambda: subscribers() == 0, "the server knows that it is dead")
    assert store.wait(name, 0.01) is None
    assert store.wait(fresh(), 0.01) is None
    eventually(lambda: subscribers() == 0, "the wait that is over is unsubscribed")


def test_a_process_has_few_connections_and_gives_them_back(redis: Redis) -> None:
    store = RedisResults(redis.url, 60.0)

    def connections() -> int:
        return sum(1 for one in client_of(store).client_list() if one["name"] == "taskq")

    before = connections()
    for _ in range(300):
        store.wait(fresh(), 0.001)
    assert connections() <= before + 1
    store.close()
    eventually(lambda: connections() <= before, "the connections are closed")
    assert store.wait(fresh(), 0.01) is None
    store.close()


def test_records_that_are_no_json_fail_with_a_reason_and_may_be_replaced(store: RedisResults) -> None:
    mine = record(fresh())
    client_of(store).set(f"celery-task-meta-{mine.id}", pickle.dumps({"status": "SUCCESS"}))
    told = store.wait(mine.id, 0.0)
    assert told is not None
    assert told.status == "FAILURE"
    assert b"result_serializer" in told.meta
    store.store([mine])
    assert fetched(store, mine.id) == mine


def test_what_a_celery_worker_records(store: RedisResults, celery: Celery) -> None:
    name = fresh()
    celery.backend.store_result(name, {"done": 5}, "PROGRESS")
    going = fetched(store, name)
    assert going is not None
    assert not going.is_end
    celery.backend.store_result(name, 7, "SUCCESS")
    end = store.wait(name, 0.0)
    assert end is not None
    assert (end.status, end.attempt, json.loads(end.meta)["result"]) == ("SUCCESS", 0, 7)
    store.store([record(name, "FAILURE", 3)])
    assert fetched(store, name) == end


def test_a_celery_client_reads_what_we_record(store: RedisResults, celery: Celery) -> None:
    name = fresh()
    result = AsyncResult(name, app=celery)
    assert result.state == "PENDING"
    store.store([record(name, "STARTED", lasting=True)])
    assert result.state == "STARTED"
    assert client_of(store).ttl(f"celery-task-meta-{name}") == -1
    store.store([record(name, value=[1, "ä"])])
    assert result.get(timeout=5) == [1, "ä"]
    assert 50 < client_of(store).ttl(f"celery-task-meta-{name}") <= 60


def test_a_celery_client_that_waits_gets_the_result(store: RedisResults, celery: Celery) -> None:
    name = fresh()
    channel = f"celery-task-meta-{name}"

    def store_it() -> None:
        eventually(lambda: client_of(store).pubsub_numsub(channel) == [(channel.encode(), 1)], "the client has subscribed")
        store.store([record(name, value=5)])

    # Celery has a connection for each thread, and closes that of its main thread alone.
    with ThreadPoolExecutor(1) as thread:
        stored = thread.submit(store_it)
        assert AsyncResult(name, app=celery).get(timeout=20) == 5
        stored.result()


def test_what_is_stored_is_published_and_what_may_not_replace_it_is_not(store: RedisResults) -> None:
    name = fresh()
    second, late, third = record(name, "FAILURE", 2), record(name, "SUCCESS", 1), record(name, "SUCCESS", 3)
    with closing(client_of(store).pubsub(ignore_subscribe_messages=True)) as heard:
        heard.subscribe(f"celery-task-meta-{name}")
        eventually(lambda: client_of(store).pubsub_numsub(f"celery-task-meta-{name}")[0][1] == 1, "it is subscribed")
        store.store([second, late, third])
        messages: list[bytes] = []

        def listen() -> bool:
            message = heard.get_message(timeout=0.1)
            messages.extend([message["data"]] if message else [])
            return len(messages) >= 2

        eventually(listen, "both are published")
        assert messages == [second.meta, third.meta]


def request(chord: str, index: int, body: Any) -> Context:
    """What a Celery worker knows of a member while it runs it."""
    return Context(id=f"{chord}-{index}", group=chord, group_index=index, chord=body)


def ours(chord: str, index: int, value: Any) -> Part:
    return Part(chord, index, f"{chord}-{index}", "SUCCESS", msgspec.json.encode(value))


def sent(celery: Celery) -> list[Any]:
    """The arguments of the bodies that Celery has sent."""
    with celery.connection_for_read() as connection:
        queue = connection.SimpleQueue(celery.conf.task_default_queue)
        bodies = []
        while queue.qsize():
            bodies.append(queue.get(block=False).payload[0])
        return bodies


@pytest.mark.parametrize("who", list(itertools.product(["celery", "ours"], repeat=3)), ids="-".join)
def test_members_of_one_chord_end_with_celery_and_with_us(
    store: RedisResults, chords: Chords, celery: Celery, who: tuple[str, ...]
) -> None:
    chord = fresh()
    body = celery.signature("body", app=celery)
    if who[0] == "ours":
        chords.open([Barrier(chord, 3)])
    else:
        celery.backend.set_chord_size(chord, 3)
    gatherings = []
    # The second one ends twice, with both of us.
    order = [(2, who[0]), (0, who[1]), (0, "celery" if who[1] == "ours" else "ours"), (1, who[2])]
    for index, counted_by in order:
        if counted_by == "celery":
            celery.backend.on_chord_part_return(request(chord, index, body), "SUCCESS", {"value": index})
        else:
            gatherings += chords.count([ours(chord, index, {"value": index})], "worker")
    values = [{"value": 0}, {"value": 1}, {"value": 2}]
    late = ours(chord, 0, {"value": 0})
    if who[2] == "ours":
        assert [gathering.state for gathering in gatherings[:-1]] == ["waiting"] * (len(gatherings) - 1)
        assert gatherings[-1].state == "complete"
        assert [json.loads(member.result) for member in gatherings[-1].members] == values
        assert [member.index for member in gatherings[-1].members] == [0, 1, 2]
        assert sent(celery) == []
        chords.close([chord], "worker")
        celery.backend.on_chord_part_return(request(chord, 1, body), "SUCCESS", {"value": 1})
    else:
        assert sent(celery) == [[values]]
        celery.backend.on_chord_part_return(request(chord, 0, body), "SUCCESS", {"value": 0})
    assert chords.count([late], "worker") == [Gathering("over")]
    assert sent(celery) == []
    # What is left of it is the mark that it is over.
    assert client_of(store).keys(f"*{chord}*") == [f"celery-taskset-meta-{chord}.c".encode()]


def test_a_member_that_failed_with_celery_is_described_as_ours_are(chords: Chords, celery: Celery) -> None:
    chord = fresh()
    body = celery.signature("body", app=celery)
    chords.open([Barrier(chord, 2)])
    celery.backend.on_chord_part_return(request(chord, 1, body), "FAILURE", ValueError("no", 5))
    [gathering] = chords.count([ours(chord, 0, 1)], "worker")
    failed = gathering.members[1]
    assert (failed.id, failed.index, failed.status) == (f"{chord}-1", 1, "FAILURE")
    assert json.loads(failed.result) == {"exc_type": "ValueError", "exc_message": ["no", 5], "exc_module": "builtins"}


def test_a_member_that_failed_with_us_fails_the_chord_at_celery(chords: Chords, celery: Celery) -> None:
    chord, body_id = fresh(), fresh()
    body = celery.signature("body", app=celery, task_id=body_id)
    chords.open([Barrier(chord, 2)])
    failed = b'{"exc_type":"ValueError","exc_message":["no"],"exc_module":"builtins"}'
    assert chords.count([Part(chord, 0, "a", "FAILURE", failed)], "worker") == [Gathering("waiting")]
    celery.backend.on_chord_part_return(request(chord, 1, body), "SUCCESS", 1)
    assert "ValueError" in str(AsyncResult(body_id, app=celery).result)
    assert sent(celery) == []


def test_the_nested_header_of_a_celery_client_comes_with_the_members(chords: Chords, celery: Celery) -> None:
    chord, inner = fresh(), fresh()
    leaves = [AsyncResult(f"{chord}-{index}", app=celery) for index in range(3)]
    header = GroupResult(chord, [leaves[0], GroupResult(inner, leaves[1:], app=celery)], app=celery)
    celery.backend.apply_chord((chord, header.results), None)
    celery.backend.set_chord_size(chord, 3)
    gathering = chords.count([ours(chord, index, index) for index in range(3)], "worker")[-1]
    assert gathering.shape is not None
    assert json.loads(gathering.shape)["result"] == json.loads(json.dumps(header.as_tuple()))
    assert [member.id for member in gathering.members] == [leaf.id for leaf in leaves]
    for leaf in leaves:
        # Celery keeps them longer than the server runs.
        leaf.backend = None
