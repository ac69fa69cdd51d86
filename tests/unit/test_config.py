"""Settings: where a value comes from, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from taskq.config import ABOUT, DEFAULTS, NAMES, Settings, http_address, load, masked, state_database
from taskq.errors import ConfigurationError


def settings(
    keywords: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    command_line: dict[str, Any] | None = None,
) -> Settings:
    return load(keywords or {}, environment=environment or {}, command_line=command_line)


def refusal(**sources: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        settings(**sources)
    return str(refused.value)


def test_the_command_line_wins_over_the_environment_over_the_keyword_over_the_default() -> None:
    keywords = {"grace": 1, "max_crashes": 1, "prefetch": 1}
    environment = {"TASKQ_GRACE": "2", "TASKQ_MAX_CRASHES": "2"}
    effective = settings(keywords, environment, {"grace": 3.0})
    assert (effective.grace, effective.max_crashes, effective.prefetch) == (3.0, 2, 1)
    assert effective.heartbeat == DEFAULTS["heartbeat"]
    assert [effective.sources[name] for name in ("grace", "max_crashes", "prefetch", "heartbeat")] == [
        "command line",
        "environment",
        "keyword",
        "default",
    ]


def test_none_says_nothing() -> None:
    effective = settings({"grace": None}, command_line={"grace": None})
    assert effective.sources["grace"] == "default"


def test_every_setting_is_described_and_has_a_source() -> None:
    assert set(ABOUT) == set(DEFAULTS) == set(NAMES) == set(settings().sources)
    assert all(ABOUT.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_default_may_be_said_in_the_environment(name: str) -> None:
    plain = settings()
    said = settings(environment={f"TASKQ_{name.upper()}": str(DEFAULTS[name])})
    assert getattr(said, name) == getattr(plain, name)
    assert type(getattr(said, name)) is type(getattr(plain, name))


@pytest.mark.parametrize(
    ("source", "called"),
    [("keywords", "max_crash="), ("environment", "TASKQ_MAX_CRASH"), ("command_line", "--max-crash")],
)
def test_an_unknown_setting_names_the_nearest(source: str, called: str) -> None:
    name = "TASKQ_MAX_CRASH" if source == "environment" else "max_crash"
    message = refusal(**{source: {name: "1"}})
    assert called in message
    assert "did you mean 'max_crashes'?" in message


def test_a_setting_like_no_other_names_them_all() -> None:
    assert all(name in refusal(keywords={"xyzzy": 1}) for name in NAMES)


def test_variables_of_others_and_taskq_app_are_not_settings() -> None:
    assert settings(environment={"TASKQ_APP": "shop:app", "TASKS": "1", "PATH": "/bin"}) == settings()


@pytest.mark.parametrize("value", ["many", "", "1.5", 1.5, "nan", [1], float("inf")])
def test_whole_numbers(value: Any) -> None:
    assert "prefetch= must be a whole number" in refusal(keywords={"prefetch": value})


@pytest.mark.parametrize("value", ["soon", "", "nan", "inf", float("-inf"), [1]])
def test_numbers(value: Any) -> None:
    assert "grace= must be a number" in refusal(keywords={"grace": value})


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (1_000_000, 1_000_000),
        ("1000000", 1_000_000),
        ("200M", 200 * 1024**2),
        ("1.5G", 1536 * 1024**2),
        ("512KiB", 512 * 1024),
        ("512 kb", 512 * 1024),
        (" 2t ", 2 * 1024**4),
        ("10B", 10),
    ],
)
def test_sizes(value: Any, size: int) -> None:
    for effective in (settings({"memory_limit": value}), settings(environment={"TASKQ_MEMORY_LIMIT": str(value)})):
        assert effective.memory_limit == size
        assert type(effective.memory_limit) is int


@pytest.mark.parametrize("value", ["", "lots", "M", "200X", "200MM", "-1M", "1e9", "nan", "٣M", 1.5, True, [1], float("inf")])
def test_what_is_no_size(value: Any) -> None:
    message = refusal(keywords={"memory_limit": value})
    assert message.startswith("memory_limit= must be a number of bytes, such as 200M, 1.5G or 512KiB, not ")


def test_sizes_survive_the_way_from_the_zygote_to_the_supervisor() -> None:
    effective = settings({"memory_limit": "200M", "max_memory_per_child": "1G"})
    assert msgspec.json.decode(msgspec.json.encode(effective), type=Settings) == effective


def test_a_soft_time_limit_that_is_never_reached_is_refused() -> None:
    assert "soft_time_limit must be below time_limit=5, not 5" in refusal(keywords={"time_limit": 5, "soft_time_limit": 5.0})
    assert settings({"soft_time_limit": 5}).time_limit == 0
    assert settings({"time_limit": 5, "soft_time_limit": 4}).soft_time_limit == 4


def test_replies_need_a_broker_that_carries_them() -> None:
    assert "backend='rpc://' needs an amqp:// broker" in refusal(keywords={"backend": "rpc://"})
    assert settings({"broker": "amqp://h//", "backend": "rpc://"}).backend_url == "rpc://"


def test_choices() -> None:
    message = refusal(environment={"TASKQ_LOG_FORMAT": "xml"})
    assert message == "TASKQ_LOG_FORMAT must be one of console, json, not 'xml'"


@pytest.mark.parametrize(
    "name",
    ["publish_timeout", "max_message_bytes", "max_result_bytes", "result_ttl", "max_crashes", "prefetch", "delivery_limit"],
)
def test_settings_that_must_be_above_zero(name: str) -> None:
    assert f"{name} must be above 0" in refusal(keywords={name: 0})


@pytest.mark.parametrize(
    "name",
    [
        *("concurrency", "grace", "unknown_task_ttl", "queue_max_priority", "heartbeat"),
        *("time_limit", "soft_time_limit", "memory_limit", "max_memory_per_child", "max_tasks_per_child"),
    ],
)
def test_settings_that_must_not_be_negative(name: str) -> None:
    assert f"{name} must not be negative" in refusal(keywords={name: -1})


def test_priorities_are_refused_on_quorum_queues() -> None:
    broker = "amqp://localhost"
    assert "queue_type='classic'" in refusal(keywords={"broker": broker, "queue_max_priority": 9})
    assert settings({"broker": broker, "queue_max_priority": 9, "queue_type": "classic"}).queue_max_priority == 9


def test_concurrency_is_the_number_of_processors_by_default() -> None:
    assert settings().concurrency == len(os.sched_getaffinity(0))


def test_the_default_broker_is_the_same_file_whatever_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    before = settings()
    monkeypatch.chdir(tmp_path)
    assert settings() == before
    assert before.broker == before.backend == "sqlite:////state/taskq/taskq.db"
    assert state_database() == Path("/state/taskq/taskq.db")


def test_a_user_without_a_home_is_told_how_to_name_a_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert "the user 54321 has no home" in refusal()
    # Whoever names a broker needs none.
    assert settings({"broker": "amqp://localhost"}).backend == "off"


def test_with_a_server_as_the_broker_results_are_off() -> None:
    effective = settings({"broker": "amqp://localhost"})
    assert effective.backend == "off"
    assert effective.backend_url is None


def test_a_backend_may_be_named_or_switched_off() -> None:
    broker = "sqlite:////tmp/broker.db"
    assert settings({"broker": broker}).backend_url == broker
    assert settings({"broker": broker, "backend": "sqlite:////tmp/results.db"}).backend_url == "sqlite:////tmp/results.db"
    assert settings({"broker": broker, "backend": "off"}).backend_url is None


@pytest.mark.parametrize(
    "url", ["redis://h/0", "rediss://h:6380/0?ssl_ca_certs=/ca.pem", "redis+socket:///run/redis", "postgresql://h/d", "rpc://"]
)
def test_a_backend_may_be_another_server_than_the_broker(url: str) -> None:
    assert settings({"broker": "amqp://localhost", "backend": url}).backend_url == url


def test_a_backend_that_taskq_does_not_speak() -> None:
    message = refusal(keywords={"backend": "mongodb://u:secret@h/d"})
    assert "it speaks sqlite://, redis://, rediss://, redis+socket://, postgresql://, rpc://" in message
    assert "secret" not in message


@pytest.mark.parametrize("url", ["redis://:secret@localhost", "localhost", "amqp:/localhost", "mysql+pymysql://u:secret@h/d"])
def test_a_url_that_taskq_does_not_speak(url: str) -> None:
    message = refusal(keywords={"broker": url})
    assert "it speaks sqlite://, amqp://, amqps://" in message
    assert "secret" not in message


def test_queue_names_are_trimmed_and_unique() -> None:
    assert settings({"queues": " mail, default ,mail,,"}).queue_names == ("mail", "default")
    assert settings(command_line={"queues": ["mail", "slow,default"]}).queue_names == ("mail", "slow", "default")
    assert settings().queue_names == ()


@pytest.mark.parametrize("queues", [",", " ", [" "], "mail.dead", "mail,mail.dead", ["mail.returned"], "taskq.control.pauses"])
def test_a_worker_cannot_be_for_queues_that_taskq_keeps_for_itself_or_for_none(queues: object) -> None:
    with pytest.raises(ConfigurationError, match=r"names no queue|rename yours"):
        settings({"queues": queues})


def test_calls_cannot_go_by_default_to_a_queue_that_taskq_keeps_for_itself() -> None:
    with pytest.raises(ConfigurationError, match="rename yours"):
        settings({"default_queue": "mail.dead"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://ann:secret@host:5672/shop", "amqp://ann:***@host:5672/shop"),
        ("amqp://:secret@host//", "amqp://:***@host//"),
        ("amqp://ann:se/cr@et@host//", "amqp://ann:***@host//"),
        ("amqp://ann@host:5672//", "amqp://ann@host:5672//"),
        ("amqps://host:5671//", "amqps://host:5671//"),
        ("amqp://u:secret@[bad/", "amqp://u:***@[bad/"),
        ("sqlite:////var/lib/a:b@c.db", "sqlite:////var/lib/a:b@c.db"),
        ("no connection to amqp://a:secret@b: refused", "no connection to amqp://a:***@b: refused"),
    ],
)
def test_masked_hides_passwords(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9808", ("127.0.0.1", 9808)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("9808", ("127.0.0.1", 9808)),
        (":9808", ("127.0.0.1", 9808)),
        ("[::1]:9808", ("::1", 9808)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_where_http_is_served(text: str, address: tuple[str, int]) -> None:
    assert http_address(text) == address
    assert settings({"http": text}).http == text


@pytest.mark.parametrize("text", ["localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "[::1:9808", "1:-1"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    assert "http must be host:port" in refusal(keywords={"http": text})
