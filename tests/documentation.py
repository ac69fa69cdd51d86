"""The documentation, read by somebody who types in everything, from the top of a page to its end.

A page is read in a folder of its own, on a broker in SQLite. What is done with a block depends on its language:

* ``python`` and ``ini``: with ``# name.py`` in its first line, it is that file. Other Python goes to one interpreter, which
  lasts as long as the page.
* ``console``: what stands behind each ``$`` is run, and has to succeed. The lines below it are what it prints, ``…`` stands for
  anything; one of them that begins with ``Error:`` says that it fails. Workers run until the page ends.
* ``text``: nothing.

A comment ``<!-- not run: why -->`` above a block makes an exception. Then Python is compiled, and the commands of taskq and of
make are checked for what there is: commands, options, targets.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from taskq.cli.main import cli
from tests.servers import free_port
from tests.support import PATIENCE, ROOT, eventually

README = ROOT / "README.md"
PAGES = [README, ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Where workers of the pages listen. Readers take another port, since there may be several of them.
ADDRESS = "127.0.0.1:9808"
PROGRAMS = {"taskq": (sys.executable, "-m", "taskq"), "python": (sys.executable,)}
#: These run until they are told to stop, and are ready when they have logged this.
SERVICES = {"worker": "worker_consuming", "scheduler": "scheduler_leads"}
_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: \S[^\n]* -->\n\Z")
_TYPED_IN = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    source, file = json.loads(line)
    exec(compile(source, file, "exec"), globals())
    print("done", file=answers, flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. ``line`` is where its text begins; ``run`` is False where the page says so."""

    page: Path
    line: int
    language: str
    text: str
    run: bool

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if it is one."""
        named = re.match(r"# ([\w.]+\.\w+)\n", self.text)
        return named[1] if named else None


def blocks(page: Path) -> Iterator[Block]:
    """The page's blocks, in their order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        indent, language, inside = found.groups()
        lines = "".join(line.removeprefix(indent) for line in inside.splitlines(keepends=True))
        run = _NOT_RUN.search(text[: found.start()]) is None
        yield Block(page, text[: found.start(3)].count("\n") + 1, language.strip(), lines, run)


def commands(block: Block) -> Iterator[tuple[dict[str, str], list[str], str]]:
    """The commands of a console block: variables set in front, words, and what is printed."""
    assert block.text.startswith("$ "), f"{block}: a console block begins with a command"
    for command in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, output = command.partition("\n")
        while line.endswith("\\"):
            more, _, output = output.partition("\n")
            line = line.removesuffix("\\") + more
        words = shlex.split(line, comments=True)
        variables = {}
        while words and (assignment := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
            variables[assignment[1]] = assignment[2]
            del words[0]
        yield variables, words, output


def check(block: Block) -> None:
    """Without running the block, find what can't be right in it."""
    match block.language:
        case "python":
            compile(block.text, str(block), "exec", dont_inherit=True)
        case "ini":
            configparser.ConfigParser(interpolation=None).read_string(block.text)
        case "console":
            for _, words, _ in commands(block):
                if words[0] == "taskq":
                    check_options(block, words)
                elif words[0] == "make":
                    for target in words[1:]:
                        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{block}: {target}"


def check_options(block: Block, words: list[str]) -> None:
    """Have the real command line read the words; ``click.UsageError`` says what is wrong with them."""
    command: click.Command = cli
    words = list(words)
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=words.pop(0))
        if not words or words[0] == "--help":
            return
        found = command.get_command(context, words[0])
        assert found is not None, f"{block}: there is no command {' '.join(words)}"
        command = found
    if "--help" not in words:
        command.make_context(words[0], words[1:])


def _squeezed(table: str) -> str:
    """The text, whatever widths its columns have."""
    return re.sub(r" {2,}", "  ", table.strip())


class Reader:
    """Somebody who reads a page in this folder."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TASKQ_", "PYTEST_"))}
        path = os.pathsep.join([str(folder), str(ROOT)])
        places = {"XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment = {**inherited, **places, "COLUMNS": "200", **environment}
        self._address = f"127.0.0.1:{free_port()}"
        self._stack = ExitStack()
        self._interpreter: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def read(self, page: Path) -> None:
        """Do what the page says."""
        for written in blocks(page):
            block = replace(written, text=written.text.replace(ADDRESS, self._address))
            if not block.run or block.language == "text":
                check(block)
                continue
            if block.file is not None:
                (self.folder / block.file).write_text(block.text)
            elif block.language == "python":
                self._type_in(block)
            elif block.language == "console":
                for variables, words, output in commands(block):
                    self._run(block, variables, words, output)
            else:
                raise AssertionError(f"{block}: nobody would check a block of {block.language!r}, which is no file")

    def _type_in(self, block: Block) -> None:
        if self._interpreter is None:
            self._interpreter = self._start([sys.executable, "-c", _TYPED_IN], self.environment, "python.log", subprocess.PIPE)
        talk = self._interpreter
        assert talk.stdin is not None
        assert talk.stdout is not None
        # Pushed down to where it stands in the page, so that a traceback shows its line.
        talk.stdin.write(json.dumps(["\n" * (block.line - 1) + block.text, str(block.page)]) + "\n")
        talk.stdin.flush()
        assert talk.stdout.readline() == "done\n", f"{block}:\n{(self.folder / 'python.log').read_text()}"

    def _run(self, block: Block, variables: dict[str, str], words: list[str], output: str) -> None:
        assert words[0] in PROGRAMS, f"{block}: nobody would run {words[0]!r}; say <!-- not run: why -->"
        command = [*PROGRAMS[words[0]], *words[1:]]
        environment = {**self.environment, **variables}
        if words[0] == "taskq" and words[1] in SERVICES:
            self._serve(command, environment, SERVICES[words[1]])
            return
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        fails = re.search(r"^Error: ", output, re.MULTILINE) is not None
        assert (ended.returncode != 0) == fails, f"{block}: {shlex.join(words)}\n{ended.stdout}{ended.stderr}"
        printed = ended.stdout + (ended.stderr if fails else "")
        if output.strip():
            pattern = re.escape(_squeezed(output)).replace("…", ".*?")
            assert re.fullmatch(pattern, _squeezed(printed), re.DOTALL), f"{block}: {shlex.join(words)} printed\n{printed}"

    def _serve(self, command: list[str], environment: dict[str, str], ready: str) -> None:
        log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        service = self._start(command, environment, log.name)

        def stop() -> None:
            service.terminate()
            assert service.wait(PATIENCE) == 0, log.read_text()

        self._stack.callback(stop)
        eventually(lambda: ready in log.read_text() or service.poll() is not None, ready)
        assert service.poll() is None, log.read_text()

    def _start(
        self, command: list[str], environment: dict[str, str], log: str, output: int | None = None
    ) -> subprocess.Popen[str]:
        with (self.folder / log).open("w") as errors:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output or errors,
                stderr=errors,
                text=True,
            )
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        return process
