"""Files and folders that are nobody else's business: other users of the machine may neither read nor lock them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

#: The permissions of folders and of files that taskq makes.
FOLDER, FILE = 0o700, 0o600


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it, where they are missing; those that exist stay as they are. Raises ``OSError``."""
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    for each in reversed(missing):
        # One by one: ``parents=True`` would have those above made for everybody.
        each.mkdir(FOLDER, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")


def make_file(path: Path) -> None:
    """Make an empty file; one that exists stays as it is. Raises ``OSError``."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE))
