"""What a worker process writes, seen as its standard error: each case runs in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

LOGGER = "from taskq import log; import logging; logger = log.get_logger('taskq.case')\n"
JSON = LOGGER + "log.configure('json', 'info')\n"
APPLICATION = JSON + "log.configure_application('json', 'info'); log.bind_task('id-1', 'shop.add', 2)\n"
WELL_KNOWN = ["timestamp", "level", "logger", "event"]
TASK = {"task_id": "id-1", "task": "shop.add", "attempt": 2}


def stderr_of(code: str) -> str:
    """What the code writes to standard error; it must write nothing to standard output."""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    return ended.stderr


def lines_of(code: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr_of(code).splitlines()]


def test_a_line_has_its_well_known_keys_first() -> None:
    code = "log.bind_task('id-1', 'shop.add', 2); logger.bind(queue='mail').info('task_succeeded', seconds=1.5)"
    [line] = lines_of(JSON + code)
    assert list(line) == [*WELL_KNOWN, "task_id", "task", "attempt", "queue", "seconds"]
    assert line["timestamp"].endswith("Z")
    assert line == {
        "timestamp": line["timestamp"],
        "level": "info",
        "logger": "taskq.case",
        "event": "task_succeeded",
        "queue": "mail",
        "seconds": 1.5,
        **TASK,
    }


def test_nothing_less_severe_than_the_level_is_written() -> None:
    code = "\n".join(f"logger.{level}('happened')" for level in ("debug", "info", "warning", "error"))
    assert [line["level"] for line in lines_of(LOGGER + "log.configure('json', 'warning')\n" + code)] == ["warning", "error"]


def test_a_loggers_destination_is_looked_up_when_it_writes() -> None:
    code = "logger.warning('before'); log.configure('json', 'info'); logger.warning('after')"
    before, after = stderr_of(LOGGER + code).splitlines()
    assert before == "before"
    assert json.loads(after)["event"] == "after"


def test_unbound_lines_name_no_task() -> None:
    [line] = lines_of(JSON + "log.bind_task('id-1', 'shop.add', 2); log.unbind_task(); logger.info('done')")
    assert list(line) == WELL_KNOWN


def test_an_exception_stands_in_its_line() -> None:
    [line] = lines_of(JSON + "try: 1 / 0\nexcept ZeroDivisionError: logger.error('task_failed', exc_info=True)")
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("form", ["json", "console"])
def test_passwords_in_urls_are_masked_wherever_they_stand(form: str) -> None:
    code = f"""
log.configure({form!r}, 'info')
try: raise OSError('no way to amqp://ann:secret@host//')
except OSError as error:
    logger.error('broker_lost', url='amqp://ann:secret@host//', all=['amqps://:secret@host'], exc_info=error)
"""
    written = stderr_of(LOGGER + code)
    assert written.count("ann:***@host//") == 2
    assert "secret" not in written


@pytest.mark.parametrize("value", ["'\\ud800'", "itself", "2 ** 70", "{(1, 2): {3}}", "object()", "float('nan')", "b'\\xff'"])
def test_a_line_does_not_fail_for_what_it_carries(value: str) -> None:
    [line] = lines_of(JSON + f"itself = []; itself.append(itself); logger.info('odd_value', value={value}, other=1)")
    assert list(line) == [*WELL_KNOWN, "value", "other"]


def test_console_lines_are_for_people() -> None:
    written = stderr_of(LOGGER + "log.configure('console', 'info'); logger.info('task_succeeded', queue='mail')")
    assert "\x1b" not in written, "standard error is no terminal here"
    assert "task_succeeded" in written
    assert "queue=mail" in written
    assert "taskq.case" in written


def test_a_lost_standard_error_costs_no_more_than_the_line() -> None:
    assert stderr_of(JSON + "import os; os.close(2); logger.info('lost')") == ""


def test_as_a_library_taskq_writes_to_logging() -> None:
    code = """
import sys
logging.basicConfig(format='%(levelname)s %(name)s %(funcName)s %(message)s', level='INFO')
def here(): logger.bind(a=1).info('session_replaced', url='amqp://ann:secret@host')
here()
try: 1 / 0
except ZeroDivisionError: logger.warning('failed', exc_info=True)
assert 'structlog' not in sys.modules
"""
    first, second, *trace = stderr_of(LOGGER + code).splitlines()
    assert first == "INFO taskq.case here session_replaced a=1 url='amqp://ann:***@host'"
    assert second == "WARNING taskq.case <module> failed"
    assert trace[-1] == "ZeroDivisionError: division by zero"


def test_records_of_logging_name_the_task_without_touching_its_configuration() -> None:
    code = """
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter('{"message": "%(message)s", "task_id": "%(task_id)s", "attempt": "%(attempt)s"}'))
logging.getLogger().addHandler(handler)
before = logging.getLogRecordFactory(), logging.getLogger().handlers[:], logging.getLogger().level, logging.getLoggerClass()
log.configure_application('json', 'info'); log.bind_task('id-1', 'shop.add', 2)
logging.warning('inside')
log.unbind_task()
logging.warning('outside')
assert before == (
    logging.getLogRecordFactory(), logging.getLogger().handlers, logging.getLogger().level, logging.getLoggerClass()
)
"""
    assert lines_of(LOGGER + code) == [
        {"message": "inside", "task_id": "id-1", "attempt": "2"},
        {"message": "outside", "task_id": "None", "attempt": "None"},
    ]


def test_a_records_own_extra_wins() -> None:
    code = "logging.basicConfig(format='%(task)s %(task_id)s'); logging.warning('x', extra={'task': 'my own'})"
    assert stderr_of(APPLICATION + code) == "my own id-1\n"


def test_records_that_nobody_handles_are_written_as_taskqs_own_lines() -> None:
    code = "logging.getLogger('shop').info('quiet'); logging.getLogger('shop').warning('sold %s', 'out')"
    [line] = lines_of(APPLICATION + code)
    assert (line["level"], line["logger"], line["event"], line["task_id"]) == ("warning", "shop", "sold out", "id-1")


def test_a_record_that_cannot_be_formatted_is_reported_as_logging_does() -> None:
    written = stderr_of(APPLICATION + "logging.getLogger('shop').warning('%d sold', 'none'); logger.info('went_on')")
    assert written.startswith("--- Logging error ---")
    assert json.loads(written.splitlines()[-1])["event"] == "went_on"


def test_an_application_may_still_configure_logging() -> None:
    code = "logging.basicConfig(format='%(message)s'); logging.getLogger('shop').warning('mine')"
    assert stderr_of(APPLICATION + code) == "mine\n"


def test_structlog_that_is_not_configured_writes_as_taskq_does() -> None:
    named, unnamed = lines_of(
        APPLICATION + "import structlog\nfor name in ['shop'], []: structlog.get_logger(*name).info('sold', n=1)"
    )
    assert named == {"timestamp": named["timestamp"], "level": "info", "logger": "shop", "event": "sold", "n": 1, **TASK}
    assert unnamed["logger"] is None


def test_structlog_that_is_configured_is_left_alone_and_finds_the_task_in_its_context() -> None:
    code = """
import structlog
structlog.configure(
    processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
    logger_factory=structlog.PrintLoggerFactory(__import__('sys').stderr),
)
before = structlog.get_config()
log.configure_application('json', 'info'); log.bind_task('id-1', 'shop.add', 2)
assert structlog.get_config() == before
structlog.get_logger().info('sold')
structlog.contextvars.bind_contextvars(order=7)
log.unbind_task()
structlog.get_logger().info('sold')
"""
    assert lines_of(LOGGER + code) == [{"event": "sold", **TASK}, {"event": "sold", "order": 7}]


def test_processes_write_whole_lines() -> None:
    code = "import os\nfor _ in range(3): os.fork()\nfor _ in range(50): logger.info('written', filler='x' * 3000)"
    assert len(lines_of(JSON + code)) == 8 * 50


def test_a_line_that_is_not_written_costs_next_to_nothing() -> None:
    code = """
import os, time
os.dup2(os.open('/dev/null', os.O_WRONLY), 2)
def cost(log):
    def once():
        start = time.perf_counter()
        for _ in range(2000): log('task_succeeded', seconds=1.5, queue='mail')
        return (time.perf_counter() - start) / 2000
    return min(once() for _ in range(20))
log.bind_task('id-1', 'shop.add', 2)
print(cost(logger.debug), cost(logger.info))
"""
    ended = subprocess.run([sys.executable, "-c", JSON + code], capture_output=True, text=True, timeout=60, check=True)
    disabled, enabled = map(float, ended.stdout.split())
    assert disabled < 2e-6
    assert enabled < 50e-6, "three times what it takes, for slow and busy machines"


def test_importing_the_logger_is_fast() -> None:
    start = time.perf_counter()
    assert stderr_of("import sys; from taskq import log; assert 'structlog' not in sys.modules") == ""
    assert time.perf_counter() - start < 10
