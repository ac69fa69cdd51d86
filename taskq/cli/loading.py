"""Finds an application by ``module:attribute``: the one place where a name becomes an object.

Used by the command line and by the worker's children. Owns the difference between "there is no such module" and "the
module failed while it was imported".
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
from importlib import machinery
from types import ModuleType, TracebackType
from typing import Any

import taskq.broker
import taskq.results
from taskq import TaskQ
from taskq.describe import traceback_of
from taskq.errors import ConfigurationError, TaskqError

#: What taskq imports beside Python's own modules.
_LIBRARIES = frozenset(
    {"amqp", "billiard", "click", "dateutil", "kombu", "msgspec", "packaging", "prometheus_client", "psycopg", "redis", "rich"}
    | {"structlog", "tzdata", "tzlocal", "vine", "watchfiles"}
)


def load_app(spec: str) -> TaskQ:
    """The app at ``module:attribute``, or at ``module:app`` if only a module is named.

    The working directory is searched first, as it is by ``python -m``. Raises ``ConfigurationError``; where the module failed
    while it was imported, the error's text holds the application's traceback.
    """
    module_name, _, attribute = spec.partition(":")
    attribute = attribute or "app"
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ConfigurationError(f"the app {spec!r} is not module:attribute, like shop.app:app{_for_path(module_name)}")
    if (folder := os.getcwd()) not in sys.path:
        _import_ours_before(folder)
        sys.path.insert(0, folder)
    module = _import(module_name)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ConfigurationError(f"module {module_name!r} has no attribute {attribute!r}{_apps_of(module)}")
        value = getattr(value, part)
    if not isinstance(value, TaskQ):
        kind = type(value)
        found = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        raise ConfigurationError(f"{module_name}:{attribute} is no TaskQ, its type is {found}{_apps_of(module)}")
    return value


def _import_ours_before(folder: str) -> None:
    """Where something in this folder has the name of a library, import first what taskq may need of libraries later."""
    suffixes = tuple(machinery.all_suffixes())
    names = {entry.name.partition(".")[0] for entry in os.scandir(folder) if entry.name.endswith(suffixes) or entry.is_dir()}
    if names.isdisjoint(sys.stdlib_module_names | _LIBRARIES):
        return
    for package in (taskq.broker, taskq.results):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):  # the driver of a backend that is not installed
                importlib.import_module(module.name)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (KeyboardInterrupt, TaskqError):
        raise
    except BaseException as error:  # noqa: BLE001  # the application's code may raise anything, SystemExit included
        where = _past_import_machinery(error.__traceback__)
        if isinstance(error, ModuleNotFoundError) and where is None:
            raise ConfigurationError(f"there is no module {error.name!r} in {os.getcwd()} or on Python's path") from None
        text = traceback_of(error.with_traceback(where)).rstrip()
        raise ConfigurationError(f"the module {name!r} failed while it was imported:\n\n{text}") from None


def _past_import_machinery(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the application's first frame on; None if the application was never reached."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file not in (__file__, importlib.__file__) and not file.startswith("<frozen importlib"):
            return trace
        trace = trace.tb_next
    return None


def _for_path(name: str) -> str:
    """What to say to somebody who gave a file."""
    if "/" not in name and not name.endswith(".py"):
        return ""
    return f"; for a file, write {name.removeprefix('./').removesuffix('.py').strip('/').replace('/', '.')}"


def _apps_of(module: ModuleType) -> str:
    apps = [f"{module.__name__}:{name}" for name, value in vars(module).items() if isinstance(value, TaskQ)]
    return f"; did you mean {' or '.join(apps)}?" if apps else "; there is no TaskQ in the module"
