"""The entry point of ``taskq`` and of ``python -m taskq``."""

from __future__ import annotations

from taskq.cli.main import cli


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    cli(prog_name="taskq")


if __name__ == "__main__":
    main()
