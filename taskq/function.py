"""What a task is made of: which functions can be one, what they take, what they are called, and when two of them are the same.

Workers know a task by its name alone, so the name must be the one under which a worker imports the function, and no other
function may have it.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable
from itertools import repeat
from pathlib import Path
from types import CellType, FunctionType, MethodType
from typing import Any

from taskq.errors import ConfigurationError

Function = Callable[..., Any]
#: Values that tell by being equal that they are the same; others tell by being one object.
_PLAIN = (str, bytes, int, float, complex)
#: Stands for what a function will close over, and does not yet.
_UNKNOWN = object()


def check(function: Any, *, bind: bool) -> None:
    """Raise ``ConfigurationError`` for what can't be a task, and say what can."""
    why = _unfit(function) or _lazy(function) or _misplaced(function, bind)
    if why is not None:
        name = getattr(function, "__qualname__", None) or repr(function)
        raise ConfigurationError(f"{name} can't be a task: {why}")


def takes(function: Function, *, bind: bool) -> inspect.Signature:
    """What a caller may give: what a wrapper takes itself, whatever function it wraps; without the attempt of a bound task."""
    # Wrappers that are not written in Python, such as that of functools.lru_cache, say nothing of what they take.
    signature = inspect.signature(function, follow_wrapped=not inspect.isfunction(function))
    parameters = list(signature.parameters.values())
    skipped = bind and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL
    return inspect.Signature(parameters[skipped:])


def most_positional(function: Function, *, bind: bool) -> float:
    """How many positional arguments a caller can give. Where a wrapper takes whatever comes, what it wraps decides."""
    parameters = list(takes(function, bind=bind).parameters.values())
    if _is_open(parameters):
        parameters = list(inspect.signature(function).parameters.values())[bind:]
    return math.inf if _is_open(parameters) else len(positional(parameters))


def positional(parameters: Iterable[inspect.Parameter]) -> tuple[str, ...]:
    """The names of those parameters that may be given by their position."""
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _is_open(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_POSITIONAL for p in parameters)


def default_name(function: Function) -> str:
    """``module.function``, as a worker that imports the module calls it.

    While a module runs as a script, or with ``python -m``, it is called ``__main__``, and ``__mp_main__`` in processes that
    ``multiprocessing`` starts.
    """
    module = function.__module__
    if module in ("__main__", "__mp_main__"):
        module = _imported_as(module)
    return f"{module}.{function.__qualname__.replace('<locals>.', '')}"


def same(one: Any, other: Any) -> bool:
    """Whether the two are one definition: one object, or what one text made twice, since its module was imported twice.

    Functions out of one factory, or of one decorator, have their code in common; what they close over tells them apart.
    """
    return _same(one, other, set())


def where(function: Any) -> str:
    """File and line of a function, as far as it has any."""
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)


def _unfit(function: Any) -> str | None:
    """Why it is nothing that could be called by a name."""
    match function:
        case str():
            return f"it is a text; a task's name is given as name={function!r}"
        case type() | functools.partial() | staticmethod() | classmethod() | property():
            kind = "class" if isinstance(function, type) else type(function).__name__
            return f"it is a {kind}; write a function, outside of any class"
        case _ if not callable(function) or not hasattr(function, "__qualname__") or function.__module__ is None:
            return "it is no function that a worker could import by its name; write one"
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        return "Python does not know what it takes; write a function that calls it"
    return None


def _lazy(function: Any) -> str | None:
    """Why calling it runs nothing: not its body, or not that of the function it wraps, as far as can be told."""
    if own := _laziness(function):
        return f"{getattr(function, '__name__', function)} is {own[0]}; {own[1]}"
    if wraps := _laziness(inspect.unwrap(function)):
        return (
            f"it wraps a function that is {wraps[0]}, and taskq can't see whether it runs it; {wraps[1]}. "
            f"Where the wrapper does run it, say so with 'del wrapper.__wrapped__' in the decorator"
        )
    return None


def _laziness(function: Any) -> tuple[str, str] | None:
    """What a function is whose call runs nothing, and what to write instead; None for others."""
    # What runs when an object is called that is no function is in its class.
    bodies = (function, inspect.unwrap(type(function).__call__))
    if any(map(inspect.iscoroutinefunction, bodies)):
        return "async", "taskq runs plain functions (asyncio.run() inside one works)"
    if any(map(inspect.isasyncgenfunction, bodies)):
        return "an async generator", "taskq runs plain functions (asyncio.run() inside one works)"
    if any(map(inspect.isgeneratorfunction, bodies)):
        return "a generator", "nobody would iterate over it; return a list, or send a task for each item"
    return None


def _misplaced(function: Any, bind: bool) -> str | None:
    """Why its parameters are not those of a task."""
    parameters = list(takes(function, bind=False).parameters.values())
    first = parameters[0] if parameters else None
    if bind:
        if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
            return "with bind=True the attempt is its first argument, and it takes none"
        parameters = parameters[1:]
    elif first is not None and first.name == "cls" and _in_class(function):
        return "it is a method, and nobody would give it its class; decorate a function outside of the class"
    if any(parameter.name == "self" for parameter in parameters):
        return (
            "it has a parameter called 'self', as methods do, and nobody would give it one; decorate a function outside of the "
            "class, call the parameter something else, or say bind=True, and it is the attempt"
        )
    return None


def _in_class(function: Any) -> bool:
    parent = function.__qualname__.rpartition(".")[0]
    return bool(parent) and not parent.endswith("<locals>")


def _imported_as(module: str) -> str:
    """The name by which a worker that is started in this folder imports the module that runs here."""
    main = sys.modules[module]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    if file is None:
        return module
    path = Path(file).absolute()
    names, folder, here = [path.stem], path.parent, Path.cwd()
    while folder != here and (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names)


def _same(one: Any, other: Any, seen: set[tuple[int, int]]) -> bool:
    if one is other or one is _UNKNOWN or other is _UNKNOWN or (id(one), id(other)) in seen:
        return True
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        seen.add((id(one), id(other)))
        mine, theirs = _kept(one), _kept(other)
        return _same_code(one, other) and len(mine) == len(theirs) and all(map(_same, mine, theirs, repeat(seen)))
    if isinstance(one, MethodType) and isinstance(other, MethodType):
        return one.__self__ is other.__self__ and _same(one.__func__, other.__func__, seen)
    return type(one) is type(other) and _same_value(one, other, seen)


def _same_value(one: Any, other: Any, seen: set[tuple[int, int]]) -> bool:
    """Of two that are of one type, and no functions."""
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other, repeat(seen)))
    if isinstance(one, dict):
        return _same([*one, *one.values()], [*other, *other.values()], seen)
    if hasattr(one, "__wrapped__") and hasattr(other, "__wrapped__"):
        return _same(one.__wrapped__, other.__wrapped__, seen)
    return isinstance(one, _PLAIN) and bool(one == other)


def _same_code(one: FunctionType, other: FunctionType) -> bool:
    if one.__code__ is other.__code__:
        return one.__globals__ is other.__globals__
    return one.__code__ == other.__code__ and one.__code__.co_filename == other.__code__.co_filename


def _kept(function: FunctionType) -> list[Any]:
    """What a function has besides its code: its defaults, and what it closes over."""
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*defaults, *map(_content, function.__closure__ or ())]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # The function's own name, most often: it is only set once the decorator returns.
        return _UNKNOWN
