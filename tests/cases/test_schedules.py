"""Kind 8: one schedule that cannot be kept, or of which the ledger says nonsense, stops no other one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq import TaskQ, crontab
from taskq.errors import ConfigurationError
from taskq.results import open_store
from taskq.results.ledger import LEDGER_SECONDS, Change
from taskq.schedule import LONGEST, Every, Schedule, State, entry_key, last_sent, schedule_of
from taskq.workers.scheduler import Scheduler, Timetable
from tests.support import Stage, eventually

app = TaskQ("cases", broker="sqlite:////nowhere/cases.db")


@app.task(name="good")
def good() -> None:
    """Never run: what matters is that it is sent."""


@app.task(name="bad", queue="bad")
def bad() -> None:
    """Never run."""


GOOD = schedule_of("good", timedelta(seconds=1), good.s())
BAD = schedule_of("bad", timedelta(seconds=1), bad.s())


@pytest.mark.parametrize(
    "entry",
    [
        timedelta(days=3_000_000),
        timedelta.max,
        timedelta.min,
        timedelta(0),
        timedelta(milliseconds=999),
        LONGEST + timedelta(seconds=1),
        "0 0 30 2 *",
        "0 0 31 4,6,9,11 *",
        "* * * * */99999999999999999999",
        f"{'9' * 5_000} * * * *",
        "61 * * * *",
        "",
        5,
        None,
    ],
)
def test_what_can_never_be_due_is_refused_where_it_is_declared(entry: Any) -> None:
    with pytest.raises(ConfigurationError, match="schedule 'odd'"):
        app.schedule("odd", entry, good.s())
    assert "odd" not in app.schedules


@pytest.mark.parametrize("microseconds", [0, -1])
def test_ticks_move_on(microseconds: int) -> None:
    with pytest.raises(ValueError, match="not every"):
        Every(microseconds)


@pytest.mark.parametrize("part", [1.5, None, b"5", {"5": 1}, [None], "2-", 10**20])
def test_a_crontab_of_odd_parts_is_refused(part: Any) -> None:
    with pytest.raises(ConfigurationError):
        crontab(minute=part)
    with pytest.raises(ConfigurationError, match="never due"):
        crontab(day_of_month=30, month_of_year=2)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "caf\udce9", 5, None, b"x"])
def test_an_odd_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        app.schedule(name, timedelta(seconds=1), good.s())


@pytest.mark.parametrize("signature", [good, "good", None, 5])
def test_what_is_no_signature_is_refused(signature: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"such as task\.s\(1\)"):
        app.schedule("odd", timedelta(seconds=1), signature)


def test_a_state_is_kept_past_the_next_tick() -> None:
    now = datetime(2028, 2, 29, 12, tzinfo=UTC)
    rare: dict[str, tuple[Any, float]] = {
        "once in ten years": (LONGEST, 0.0),
        "a leap day": (crontab(minute=0, hour=0, day_of_month=29, month_of_year=2), 4 * 365 * 86_400.0),
        "a leap day on a Monday": (crontab(0, 0, day_of_week="mon", day_of_month=29, month_of_year=2), 15 * 365 * 86_400.0),
    }
    for name, (entry, least) in rare.items():
        schedule = schedule_of(name, entry, good.s())
        kept = schedule.kept_for(State(schedule.rule, now), now)
        assert kept > least
        assert now + timedelta(seconds=kept) - schedule.next_after(now) >= timedelta(seconds=LEDGER_SECONDS - 1)


@contextmanager
def kept_by(stage: Stage, schedules: Sequence[Schedule], entries: dict[str, bytes] | None = None) -> Any:
    """A scheduler of these, over a ledger in which these entries stand; the good schedule is due at once."""
    state = State(GOOD.rule, datetime.now(UTC) - timedelta(seconds=30))
    with closing(open_store(str(stage.keywords["backend"]), 60.0)) as store:
        assert store.ledger is not None
        standing = {entry_key("cases", "good"): msgspec.json.encode(state), **(entries or {})}
        changes = [Change(key, store.ledger.read([key]).get(key), entry) for key, entry in standing.items()]
        assert store.ledger.swap(changes)
    timetable = Timetable(stage.effective(), schedules, {"good": stage.queue, "bad": f"{stage.queue}.bad"})
    scheduler = Scheduler("cases", timetable, "here")
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()


def sent(stage: Stage) -> int:
    return stage.depth() or 0


@pytest.fixture(params=["one file", "two files"])
def files(request: pytest.FixtureRequest, sqlite_stage: Stage) -> Stage:
    """Where broker and backend are one file, a tick is one transaction; where they are two, it is claimed first."""
    if request.param == "two files":
        sqlite_stage.settings["backend"] = f"sqlite:///{sqlite_stage.folder}/results.db"
    return sqlite_stage


odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
moments = st.datetimes().map(datetime.isoformat) | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat) | odd_json
states = st.fixed_dictionaries(
    {"rule": st.sampled_from([GOOD.rule, "old"]) | odd_json, "last": moments},
    optional={"sent": moments, "pending": moments, "copies": st.integers() | odd_json},
)
leases = st.fixed_dictionaries({"holder": st.text(max_size=5) | odd_json, "renewed": odd_json, "attended": odd_json})


def written(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=20) | values.map(lambda value: json.dumps(value).encode()) | st.just(b"[" * 5_000)


odd_schedules = st.builds(
    lambda name, microseconds, zone, jitter, misfire, options: msgspec.structs.replace(
        BAD,
        name=name,
        entry=Every(microseconds),
        timezone=zone,
        jitter=jitter,
        misfire=misfire,
        step=msgspec.structs.replace(BAD.step, options={**BAD.step.options, **options}),
    ),
    st.text(min_size=1, max_size=5).map(lambda text: f"bad {text}"),
    st.sampled_from([1_000_000, 86_400_000_000 * 3_000_000, 10**30]),
    st.sampled_from(["UTC", "No/Where", ""]),
    st.sampled_from([0.0, 60.0, 1e308]),
    st.sampled_from(["skip", "latest", "all"]),
    st.dictionaries(st.sampled_from(["queue", "countdown", "expires", "priority", "headers"]), odd_json, max_size=2),
)


def test_any_schedules_over_any_ledger_let_a_good_one_be_kept(files: Stage) -> None:
    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(st.lists(odd_schedules, max_size=3, unique_by=lambda one: one.name), st.data())
    def kept(odd: list[Schedule], data: st.DataObject) -> None:
        entries = {entry_key("cases", one.name): data.draw(written(states)) for one in odd}
        entries["leader cases"] = data.draw(written(leases))
        before = sent(files)
        with kept_by(files, [*odd, GOOD], entries):
            eventually(lambda: sent(files) > before, "the good schedule is kept")

    kept()


@pytest.mark.parametrize("entry", [b"", b"\xff", b"[]", b'{"rule": "x"}', b'{"rule": "x", "last": "2020-01-01T00:00:00"}'])
def test_a_schedule_of_which_the_ledger_says_nonsense_begins_anew(files: Stage, entry: bytes) -> None:
    with kept_by(files, [GOOD], {entry_key("cases", "good"): entry}):
        eventually(lambda: sent(files), "it is kept")
    with closing(open_store(str(files.keywords["backend"]), 60.0)) as store:
        assert store.ledger is not None
        assert last_sent(store.ledger, "cases", ["good"]).keys() == {"good"}
        key = entry_key("cases", "good")
        assert store.ledger.swap([Change(key, store.ledger.read([key])[key], entry)])
        assert last_sent(store.ledger, "cases", ["good"]) == {}


def test_what_a_broker_cannot_take_of_one_schedule_holds_up_no_other_one(
    amqp_stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def with_options(name: str, **options: Any) -> Schedule:
        step = msgspec.structs.replace(BAD.step, options={**BAD.step.options, **options})
        return msgspec.structs.replace(BAD, name=name, step=step)

    odd = {
        "an endless queue": with_options("an endless queue", queue="q" * 300),
        "no such priority": with_options("no such priority", priority=5),
        "endless headers": with_options("endless headers", headers={"x": "h" * 140_000}),
        "a number as queue": with_options("a number as queue", queue=5),
    }
    with kept_by(amqp_stage, [*odd.values(), GOOD]):
        eventually(lambda: sent(amqp_stage) >= 3, "the good schedule is kept", 30.0)
        eventually(lambda: _complaints(caplog) >= odd.keys() - {"endless headers"}, "it is said of each")
    with closing(open_store(str(amqp_stage.keywords["backend"]), 60.0)) as store:
        assert store.ledger is not None
        assert last_sent(store.ledger, "cases", ["good", *odd]).keys() == {"good"}


def _complaints(caplog: pytest.LogCaptureFixture) -> set[str]:
    lines = [record.getMessage() for record in caplog.records]
    return {line.partition("schedule='")[2].partition("'")[0] for line in lines if line.startswith("tick_refused")}
