"""Pages of the documentation, as tests read them: the files that they show, and the commands that they have a person type."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import ROOT

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Page:
    """A page under docs/."""

    def __init__(self, name: str) -> None:
        self.path = ROOT / "docs" / name
        self.text = self.path.read_text()
        self.blocks = _BLOCK.findall(self.text)

    @property
    def commands(self) -> list[str]:
        """Every line that begins with a prompt, in order; a command that ends with a backslash goes on in the next line."""
        typed = "".join(text for language, text in self.blocks if language == "console").replace("\\\n", "")
        return [line.removeprefix("$ ") for line in typed.splitlines() if line.startswith("$ ")]

    def file(self, name: str) -> str:
        """The block that begins with a comment with this name."""
        [found] = [text for _, text in self.blocks if text.startswith((f"# {name}\n", f"# {name}:"))]
        return str(found)

    def write(self, name: str, folder: Path) -> Path:
        """Write that block into the folder, under its name."""
        path = folder / name
        path.write_text(self.file(name))
        return path
