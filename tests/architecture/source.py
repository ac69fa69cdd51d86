"""The source of the project as values: modules, what they import, their functions."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file of source under the name that it is imported by."""

    name: str
    file: Path
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        return self.name if self.file.name == "__init__.py" else self.name.rpartition(".")[0]


@cache
def modules(folder: str) -> tuple[Module, ...]:
    """Every module below the folder. ``taskq`` includes ``taskq.workers``, whose files are in the folder ``workers``."""
    found = []
    for directory, _, files in os.walk(ROOT / folder, followlinks=True):
        for file in sorted(Path(directory, name) for name in files if name.endswith(".py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = file.read_text()
            found.append(Module(name, file, ast.parse(text), text.count("\n")))
    return tuple(found)


def functions(module: Module) -> Iterator[Function]:
    """Every function and method of the module, nested ones included."""
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield node


def imports(module: Module, *, for_types: bool = True) -> Iterator[str]:
    """Every module that this one imports anywhere, inside functions too, by its whole name.

    Without ``for_types``, those that only a type checker imports are left out.
    """
    known = {other.name for other in modules("taskq")}
    left_out = set() if for_types else set(_imports_for_types(module))
    for node in ast.walk(module.tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node, module, known)


def _imports_for_types(module: Module) -> Iterator[ast.AST]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                yield from ast.walk(statement)


def _imported_from(node: ast.ImportFrom, module: Module, known: set[str]) -> Iterator[str]:
    """``from package import name`` imports ``package.name`` where that is a module, and else ``package``."""
    base = node.module or ""
    if node.level:
        parent = module.package.rsplit(".", node.level - 1)[0]
        base = f"{parent}.{base}".rstrip(".")
    for alias in node.names:
        submodule = f"{base}.{alias.name}"
        yield submodule if submodule in known else base
