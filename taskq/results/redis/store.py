"""The store: records as Celery keeps them, under ``celery-task-meta-<id>``, each published in the channel of that name.

Invariant: what is published has been stored, and what may not replace what stands is neither.
"""

from __future__ import annotations

import functools
import queue
import time
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from taskq.decoding import decoded
from taskq.errors import MessageError
from taskq.results.ledger import Ledger
from taskq.results.redis.chords import RedisChords, not_json
from taskq.results.redis.connection import Server, milliseconds, raw, readable
from taskq.results.redis.ledger import RedisLedger
from taskq.results.redis.listener import LOOK, Listener
from taskq.results.store import Chords, Condition, Leave, Record, Status

PREFIX = "celery-task-meta-"
#: How many records go in one step, during which the server answers nobody else.
_CHUNK = 500
#: Seconds between two looks of a waiter, should the server have gone away without a word.
_SAFETY_NET = 10.0
#: Whatever else Celery writes (a state of the application's) is of a task that runs.
_STATES: dict[str, Status] = {
    "RETRY": "RETRY",
    "SUCCESS": "SUCCESS",
    "FAILURE": "FAILURE",
    "REVOKED": "REVOKED",
    "IGNORED": "IGNORED",
}

# What stands is decoded only where there is something, after a redelivery for example; what is no JSON was not written by us,
# and has no say. ``begun`` is the run that has begun, where its record has been replaced by one of somebody else's.
_STANDING = """
local ends = {SUCCESS = true, FAILURE = true, REVOKED = true, IGNORED = true}

local function standing(key)
    local known = redis.call('GET', key)
    if not known then
        return nil
    end
    local decoded, old = pcall(cjson.decode, known)
    if not decoded or type(old) ~= 'table' then
        return nil
    end
    local function text(value)
        return type(value) == 'string' and value or nil
    end
    local own = text(old.run)
    return {
        status = text(old.status) or '', attempt = tonumber(old.attempt) or 0, round = tonumber(old.round) or 0,
        own = own, run = own or text(old.begun)
    }
end

local function keep(key, meta, ttl_ms)
    if ttl_ms == '' then
        redis.call('SET', key, meta)
    else
        redis.call('SET', key, meta, 'PX', ttl_ms)
    end
    redis.call('PUBLISH', key, meta)
end
"""
# Which record may replace which is the promise of ResultStore.
_STORE = f"""{_STANDING}
local function replaces(old, status, attempt, round, run)
    if old.status == 'SUCCESS' and status ~= 'SUCCESS' then
        return false
    end
    if old.run and old.run == run and ends[status] then
        return true
    end
    if old.run and (round < old.round or (round == old.round and old.own and ends[old.status])) then
        return false
    end
    return attempt >= old.attempt and (ends[status] or not ends[old.status] or attempt > old.attempt)
end

for i, key in ipairs(KEYS) do
    local status, attempt, ttl_ms = ARGV[6 * i - 5], tonumber(ARGV[6 * i - 4]), ARGV[6 * i - 3]
    local meta, round, run = ARGV[6 * i - 2], tonumber(ARGV[6 * i - 1]), ARGV[6 * i]
    local old = standing(key)
    if not old or replaces(old, status, attempt, round, run) then
        if old and old.run and run == '' and round <= old.round then
            meta = string.sub(meta, 1, -2) .. ',"begun":' .. cjson.encode(old.run) .. '}}'
        end
        keep(key, meta, ttl_ms)
    end
end
"""
_BEGIN = f"""{_STANDING}
local answer = {{}}
for i, key in ipairs(KEYS) do
    local ttl_ms, meta, round, run = ARGV[6 * i - 3], ARGV[6 * i - 2], tonumber(ARGV[6 * i - 1]), ARGV[6 * i]
    local old = standing(key)
    if not old
        or (not ends[old.status] and (old.run == run or (not old.run and round >= old.round)))
        or (old.status ~= 'SUCCESS' and round > old.round)
    then
        keep(key, meta, ttl_ms)
        answer[i] = 'granted'
    else
        answer[i] = ends[old.status] and 'over' or 'taken'
    end
end
return answer
"""
# What stands becomes the same without the run. The round stays: what belongs to an earlier one must not begin.
_RELEASE = f"""{_STANDING}
for i, key in ipairs(KEYS) do
    local old = standing(key)
    if old and old.own == ARGV[i] and not ends[old.status] then
        local meta = redis.call('GET', key)
        keep(key, string.sub(meta, 1, -2) .. ',"run":null}}', '')
    end
end
"""
_REPLACE = """
local answer = {}
for i, key in ipairs(KEYS) do
    local replaced = redis.call('GET', key) == ARGV[2 * i - 1]
    if replaced then
        local kept_ms = redis.call('PTTL', key)
        redis.call('SET', key, ARGV[2 * i])
        if kept_ms > 0 then
            redis.call('PEXPIRE', key, kept_ms)
        end
    end
    answer[i] = replaced and 1 or 0
end
return answer
"""


class _Head(msgspec.Struct):
    """What we have to know of a record."""

    status: str
    attempt: int | None = None


_decode_head = msgspec.json.Decoder(_Head).decode


class RedisResults:
    """The store on the server of ``url``, whose records live ``ttl`` seconds. Safe from many threads at once and after a fork.

    How durable it is depends on the server: with ``appendfsync always``, what was stored survives the loss of power.
    """

    reply_to: str | None = None

    def __init__(self, url: str, ttl: float) -> None:
        self._server = Server(url)
        self._ttl = milliseconds(ttl)
        self._listener = Listener(self._server)
        scripts = (_STORE, _BEGIN, _RELEASE, _REPLACE)
        self._store, self._begin, self._release, self._replace = map(self._server.client.register_script, scripts)
        self.chords: Chords | None = RedisChords(self._server, ttl)
        self.ledger: Ledger | None = RedisLedger(self._server)

    def store(self, records: Sequence[Record]) -> None:
        """Keep the records and tell who waits for one of them; raises ``BackendError`` and ``RecordRefused``."""
        self._run(self._store, records)

    def begin(self, records: Sequence[Record]) -> list[Leave]:
        """Which of these may begin; raises as ``store``."""
        return [cast(Leave, answer.decode()) for answer in self._run(self._begin, records)]

    def release(self, records: Sequence[Record]) -> None:
        """Others may begin these; raises ``BackendError``."""
        if records:
            with self._server.asked():
                self._release([raw(PREFIX + record.id) for record in records], [record.run or "" for record in records])

    def replace(self, changes: Sequence[tuple[Record, bytes]]) -> list[bool]:
        """Which of these beginnings stood as they were fetched, and say this now; raises as ``store``."""
        if not changes:
            return []
        keys = [raw(PREFIX + record.id) for record, _ in changes]
        arguments = [text for record, meta in changes for text in (record.meta, meta)]
        largest = max(len(meta) for _, meta in changes)
        return [bool(done) for done in self._server.told(functools.partial(self._replace, keys, arguments), largest)]

    def _run(self, script: Any, records: Sequence[Record]) -> list[bytes]:
        answers: list[bytes] = []
        for start in range(0, len(records), _CHUNK):
            chunk = records[start : start + _CHUNK]
            arguments: list[Any] = []
            for record in chunk:
                ttl = "" if record.lasting and not record.is_end else self._ttl
                arguments += [record.status, record.attempt, ttl, record.meta, record.round, record.run or ""]
            keys = [raw(PREFIX + record.id) for record in chunk]
            largest = max(len(record.meta) for record in chunk)
            answers += self._server.told(functools.partial(script, keys, arguments), largest) or ()
        return answers

    def fetch(self, task_ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids, in their order; raises ``BackendError``."""
        if not task_ids:
            return []
        with self._server.asked() as client:
            metas: Any = client.mget([raw(PREFIX + task_id) for task_id in task_ids])
        return [None if meta is None else _record(task_id, meta) for task_id, meta in zip(task_ids, metas, strict=True)]

    def wait(self, task_id: str, timeout: float | None) -> Record | None:
        """The end of this id as soon as there is one, or None after ``timeout`` seconds; raises ``BackendError``.

        A server that is away for a moment is waited for.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        [record] = self.fetch([task_id])
        if (record is not None and record.is_end) or (timeout is not None and timeout <= 0):
            return record if record is not None and record.is_end else None
        with self._listener.listening(raw(PREFIX + task_id)) as ear:
            while True:
                left = _SAFETY_NET if give_up is None else min(_SAFETY_NET, give_up - time.monotonic())
                if left <= 0:
                    return None
                try:
                    meta = ear.get(timeout=left)
                except queue.Empty:
                    meta = LOOK
                [record] = self.fetch([task_id]) if meta == LOOK else [_record(task_id, meta)]
                if record is not None and record.is_end:
                    return record

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete these records; raises ``BackendError``."""
        if task_ids:
            with self._server.asked() as client:
                client.delete(*[raw(PREFIX + task_id) for task_id in task_ids])

    def keep(self, name: str, document: bytes, ttl: float) -> None:
        """Keep a document, under its name as the key; raises ``BackendError``."""
        self._server.told(functools.partial(self._server.client.set, raw(name), document, px=milliseconds(ttl)), len(document))

    def document(self, name: str) -> bytes | None:
        """The document of this name, or None; raises ``BackendError``."""
        with self._server.asked() as client:
            document: Any = client.get(raw(name))
        return None if document is None else bytes(document)

    def expire(self) -> bool:
        """Redis forgets by itself."""
        return False

    def condition(self) -> Condition:
        """What decides whether Redis forgets more than it should; raises ``BackendError``."""
        with self._server.asked() as client:
            asked_at = time.time()
            seconds, microseconds = client.time()
            ahead = seconds + microseconds / 1e6 - (asked_at + time.time()) / 2
            # Not CONFIG GET, which many services keep for themselves.
            told: Any = client.info()
        names = ("maxmemory", "maxmemory_policy", "aof_enabled", "role")
        options = {name: str(told[name]) for name in names if name in told}
        return Condition(product="Redis", version=str(told.get("redis_version", "")), ahead=ahead, options=options)

    def close(self) -> None:
        """Close the connections."""
        self._listener.close()
        self._server.close()


def _record(task_id: str, meta: bytes) -> Record:
    try:
        head = decoded(_decode_head, meta, "the record")
    except MessageError:
        failure = not_json(f"the result of {task_id!a}")
        described = {"task_id": readable(task_id), "status": "FAILURE", "result": failure, "traceback": None}
        return Record(task_id, "FAILURE", msgspec.json.encode(described))
    return Record(task_id, _STATES.get(head.status, "STARTED"), meta, head.attempt or 0)
