"""Where the application's source is: the folders that ``--reload`` watches."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

#: Folders of what was installed, whoever installed it.
_INSTALLED = frozenset({"site-packages", "dist-packages"})


def source_folders() -> tuple[str, ...]:
    """The folders of all modules imported so far that were neither installed nor are Python's own or taskq's.

    Of a package, the folder of its outermost package, with everything in it; of a single module, the folder that it is in.
    """
    paths = sysconfig.get_paths()
    others = {Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders = {folder for folder in _folders(list(sys.modules.values())) if not _inside(folder, others)}
    return tuple(sorted(str(folder) for folder in folders if not _inside(folder.parent, folders)))


def _folders(modules: Iterable[ModuleType]) -> Iterator[Path]:
    for module in modules:
        file, package = getattr(module, "__file__", None), module.__name__.partition(".")[0]
        # Of taskq's workers, the same files are found by another path, too.
        if (
            file is not None
            and package not in ("__main__", "taskq")
            and not {"site-packages", "dist-packages"} & {*Path(file).parts}
        ):
            path = Path(file).resolve()
            yield next((folder for folder in path.parents if folder.name == package), path.parent)


def _inside(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
