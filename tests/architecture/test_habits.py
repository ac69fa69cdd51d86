"""Habits that no linter knows: sizes, names, and tests that neither sleep nor skip nor mock."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

import taskq
from tests.architecture.source import Function, Module, functions, modules

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
#: A Kombu transport is one class by Kombu's design.
LARGER = {"taskq.broker.sqlite.transport": 500, "taskq.broker.sqlite.channel": 500}
LONGEST_SLEEP = 0.5

each_module = pytest.mark.parametrize("module", [*modules("taskq"), *modules("tests")], ids=lambda module: module.name)
each_test = pytest.mark.parametrize("module", modules("tests"), ids=lambda module: module.name)


@each_module
def test_a_file_can_be_read_in_one_sitting(module: Module) -> None:
    assert module.lines <= LARGER.get(module.name, MOST_LINES)


@each_module
def test_a_function_fits_on_a_screen(module: Module) -> None:
    too_long = {
        function.name: length
        for function in functions(module)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    }
    assert too_long == {}


def test_whatever_cannot_be_read_is_caught_whole() -> None:
    partly = {"DecodeError", "ValidationError", "UnicodeDecodeError"}
    caught = {
        (module.name, handler.lineno)
        for module in modules("taskq")
        for handler in ast.walk(module.tree)
        if isinstance(handler, ast.ExceptHandler) and handler.type is not None
        for node in ast.walk(handler.type)
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node).removeprefix("msgspec.") in partly
    }
    # There, text that is no UTF-8 is something else than an error.
    meant = {"taskq.serialization", "taskq.broker.amqp.properties"}
    assert {found for found in caught if found[0] not in meant} == set(), "catch decoding.UNREADABLE, or use decoding.decoded"


def test_public_names_are_sorted_and_there() -> None:
    assert taskq.__all__ == sorted(taskq.__all__)
    assert all(hasattr(taskq, name) for name in taskq.__all__)


@each_test
def test_tests_wait_for_conditions_instead_of_sleeping(module: Module) -> None:
    assert [call.lineno for call in _sleeps(module.tree)] == []


def _sleeps(node: ast.AST) -> Iterator[ast.Call]:
    """Long sleeps, but for those of tasks: a task that takes long is what some tests are about."""
    if isinstance(node, Function) and any("task" in ast.unparse(decorator) for decorator in node.decorator_list):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
        seconds = node.args[0] if node.args else None
        if isinstance(seconds, ast.Constant) and isinstance(seconds.value, int | float) and seconds.value >= LONGEST_SLEEP:
            yield node
    for child in ast.iter_child_nodes(node):
        yield from _sleeps(child)


@each_test
def test_tests_neither_skip_nor_mock(module: Module) -> None:
    forbidden = {"skip", "skipif", "importorskip", "xfail", "mock", "MagicMock"}
    names = {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    imported = [node.names for node in ast.walk(module.tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names |= {alias.name.rpartition(".")[2] for aliases in imported for alias in aliases}
    assert names & forbidden == set()
