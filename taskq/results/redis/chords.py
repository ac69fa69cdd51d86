"""Chords in Redis, counted as Celery 5.7 counts them, so that a chord's members may end with its workers and with ours.

Under ``celery-taskset-meta-<chord>``, and this with a suffix, stand

* nothing: how the header nests groups, where it does; Celery saves it before it sends the members
* ``.s``: the number of members, ``.t``: how many more were added since
* ``.j``: the ends as ``[1, id, status, result]``, sorted by index; ``.d``: which members, as ``id:index``, are among them
* ``.c``: who has the claim, or ``done`` once the body has been started
* ``.h``: who of us had the claim last. Celery does not know it. It lets the holder close a chord whose claim has run out while
  nobody else has taken it.

Invariant: each script is one step for everybody else, so that one alone finds a chord complete and unclaimed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from taskq.decoding import decoded
from taskq.errors import MessageError
from taskq.results.redis.connection import Server, milliseconds, raw, readable
from taskq.results.store import CHORD_SECONDS, CLAIM_SECONDS, Barrier, Gathering, Part, Status

PREFIX = "celery-taskset-meta-"

_OPEN = """
for i, chord in ipairs(KEYS) do
    if redis.call('GET', chord .. '.c') ~= 'done' then
        redis.call('SET', chord .. '.s', ARGV[i + 1], 'NX', 'PX', ARGV[1])
    end
end
"""

# A row for each part: how its chord stands and, where that is complete, the members with their indices, and the shape.
_COUNT = """
local claimant, claim_ms, ttl_ms = ARGV[1], ARGV[2], ARGV[3]

local function stand(chord)
    local size = redis.call('GET', chord .. '.s')
    if not size then
        return {'waiting'}
    end
    local missing = size + (redis.call('GET', chord .. '.t') or 0) - redis.call('ZCARD', chord .. '.j')
    if missing > 0 then
        return {'waiting'}
    end
    local holder = redis.call('GET', chord .. '.c')
    if holder and holder ~= claimant then
        return {'contested'}
    end
    redis.call('SET', chord .. '.c', claimant, 'PX', claim_ms)
    redis.call('SET', chord .. '.h', claimant, 'PX', ttl_ms)
    return {'complete', redis.call('ZRANGE', chord .. '.j', 0, -1, 'WITHSCORES'), redis.call('GET', chord)}
end

local answer = {}
for i, chord in ipairs(KEYS) do
    local member, index, entry = ARGV[3 * i + 1], ARGV[3 * i + 2], ARGV[3 * i + 3]
    if redis.call('GET', chord .. '.c') == 'done' then
        answer[i] = {'over'}
    else
        if redis.call('SADD', chord .. '.d', member) == 1 then
            -- One task at two places of a header: a set holds the same text once, so the second one gets a blank.
            while redis.call('ZSCORE', chord .. '.j', entry) do
                entry = entry .. ' '
            end
            redis.call('ZADD', chord .. '.j', index, entry)
        end
        for _, suffix in ipairs({'', '.s', '.t', '.j', '.d'}) do
            redis.call('PEXPIRE', chord .. suffix, ttl_ms)
        end
        answer[i] = stand(chord)
    end
end
return answer
"""

_CLOSE = """
local claimant, ttl_ms = ARGV[1], ARGV[2]
for _, chord in ipairs(KEYS) do
    local holder = redis.call('GET', chord .. '.c') or redis.call('GET', chord .. '.h')
    if holder == claimant then
        redis.call('DEL', chord .. '.j', chord .. '.d', chord .. '.s', chord .. '.t', chord .. '.h')
        redis.call('PEXPIRE', chord, ttl_ms)
        redis.call('SET', chord .. '.c', 'done', 'PX', ttl_ms)
    end
end
"""


class RedisChords:
    """Counts on this server; that a chord is over is forgotten after ``ttl`` seconds.

    A Celery worker that counts a member sets the time to live of what it knows of the chord, to Celery's ``result_expires``.
    """

    def __init__(self, server: Server, ttl: float) -> None:
        self._server = server
        self._ttl = milliseconds(ttl)
        self.claim_seconds = CLAIM_SECONDS
        self.keep_seconds = max(ttl, CHORD_SECONDS)
        self._open, self._count, self._close = map(server.client.register_script, (_OPEN, _COUNT, _CLOSE))

    def open(self, barriers: Sequence[Barrier]) -> None:
        """The chords are about to begin; raises ``BackendError``."""
        kept = milliseconds(self.keep_seconds)
        with self._server.asked():
            self._open([_key(barrier.chord) for barrier in barriers], [kept, *[barrier.size for barrier in barriers]])

    def count(self, parts: Sequence[Part], claimant: str) -> list[Gathering]:
        """Count these, and say how their chords stand then; raises ``BackendError`` and ``RecordRefused``."""
        arguments: list[Any] = [claimant, milliseconds(self.claim_seconds), milliseconds(self.keep_seconds)]
        for part in parts:
            index = "+inf" if part.index is None else part.index
            arguments += [raw(f"{part.id}:{index}"), index, _entry(part)]
        largest = max((len(part.result) for part in parts), default=0)
        answer = self._server.told(functools.partial(self._count, [_key(part.chord) for part in parts], arguments), largest)
        return [_gathering(part.chord, *row) for part, row in zip(parts, answer, strict=True)]

    def close(self, chords: Sequence[str], claimant: str) -> None:
        """What follows these has been started by the holder of the claim; raises ``BackendError``."""
        with self._server.asked():
            self._close([_key(chord) for chord in chords], [claimant, self._ttl])


def _key(chord: str) -> bytes:
    return raw(PREFIX + chord)


_decode_entry = msgspec.json.Decoder(tuple[int, str, str, msgspec.Raw]).decode


def _entry(part: Part) -> bytes:
    return msgspec.json.encode([1, readable(part.id), part.status, msgspec.Raw(part.result)])


def _gathering(chord: str, state: bytes, entries: Sequence[bytes] = (), shape: bytes | None = None) -> Gathering:
    members = tuple(_member(chord, entry, float(index)) for entry, index in zip(entries[::2], entries[1::2], strict=True))
    return Gathering(cast(Any, state.decode()), members, shape)


def _member(chord: str, entry: bytes, index: float) -> Part:
    place = None if math.isinf(index) else int(index)
    try:
        _, member, status, result = decoded(_decode_entry, entry, "the end of a member")
    except MessageError:
        # A chord has to end all the same.
        return Part(chord, place, "", "FAILURE", msgspec.json.encode(not_json("the end of a member")))
    return Part(chord, place, member, cast(Status, status), bytes(result))


def not_json(what: str) -> dict[str, Any]:
    """The failure that stands for what a Celery worker has written in another format."""
    text = f"{what} is no JSON; set Celery's result_serializer to 'json', and its result_compression to None"
    return {"exc_type": "BackendError", "exc_message": [text], "exc_module": "taskq.errors"}
