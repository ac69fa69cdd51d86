"""``-A``: what is found, and what is said when nothing is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.cli.loading import load_app
from taskq.errors import ConfigurationError

APP = "from taskq import TaskQ\napp = TaskQ('shop')\nother = TaskQ('other')\nnumber = 3\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(folder: Path, **modules: str) -> None:
    for name, source in modules.items():
        file = folder / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)


def refusal(spec: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load_app(spec)
    return str(refused.value)


def test_module_and_attribute(folder: Path) -> None:
    write(folder, case_app=APP)
    assert load_app("case_app:other").name == "other"


def test_a_bare_module_means_its_app(folder: Path) -> None:
    write(folder, case_bare__tasks=APP)
    assert load_app("case_bare.tasks").name == "shop"


def test_the_attribute_may_be_dotted(folder: Path) -> None:
    write(folder, case_dotted=APP + "class Container: inner = app\n")
    assert load_app("case_dotted:Container.inner").name == "shop"


@pytest.mark.parametrize("spec", ["", ":", ":app", ".tasks:app", "shop..tasks", "sh op", "shop:app:more", "shop:app()"])
def test_what_is_no_module_and_attribute(spec: str) -> None:
    assert "is not module:attribute" in refusal(spec)


@pytest.mark.parametrize("spec", ["shop/app.py", "./shop/app.py", "shop/app"])
def test_a_file_is_not_a_module(spec: str) -> None:
    assert refusal(spec).endswith("for a file, write shop.app")


def test_a_module_that_does_not_exist(folder: Path) -> None:
    assert refusal("case_missing:app") == f"there is no module 'case_missing' in {folder} or on Python's path"


def test_a_submodule_that_does_not_exist(folder: Path) -> None:
    write(folder, case_package__tasks=APP)
    assert "there is no module 'case_package.task' in" in refusal("case_package.task:app")


def test_an_attribute_that_does_not_exist(folder: Path) -> None:
    write(folder, case_attribute=APP)
    assert refusal("case_attribute:ap") == (
        "module 'case_attribute' has no attribute 'ap'; did you mean case_attribute:app or case_attribute:other?"
    )


def test_a_module_without_an_app(folder: Path) -> None:
    write(folder, case_empty="")
    assert refusal("case_empty") == "module 'case_empty' has no attribute 'app'; there is no TaskQ in the module"


def test_something_else_than_an_app(folder: Path) -> None:
    write(folder, case_type=APP)
    message = refusal("case_type:number")
    assert message == "case_type:number is no TaskQ, its type is int; did you mean case_type:app or case_type:other?"


def test_a_module_that_fails_shows_the_applications_own_traceback(folder: Path) -> None:
    write(folder, case_failing="import case_helper\n", case_helper="def f():\n    return 1 / 0\nf()\n")
    message = refusal("case_failing:app")
    assert message.startswith("the module 'case_failing' failed while it was imported:\n\nTraceback")
    assert message.endswith("ZeroDivisionError: division by zero")
    assert "case_helper.py" in message
    assert "loading.py" not in message


def test_a_module_that_imports_a_missing_module_has_failed(folder: Path) -> None:
    write(folder, case_importing="import case_nowhere\n")
    message = refusal("case_importing:app")
    assert "failed while it was imported" in message
    assert "ModuleNotFoundError: No module named 'case_nowhere'" in message
    assert "case_importing.py" in message


def test_a_syntax_error_is_shown(folder: Path) -> None:
    write(folder, case_syntax="app = (\n")
    message = refusal("case_syntax:app")
    assert "SyntaxError" in message
    assert "case_syntax.py" in message


def test_a_module_that_exits_has_failed(folder: Path) -> None:
    write(folder, case_exit="import sys\nsys.exit(3)\n")
    assert "SystemExit: 3" in refusal("case_exit:app")
