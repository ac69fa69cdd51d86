"""An application that has configured logging and structlog its own way, and can say whether that is still so."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from tests.apps.basic import app

handler = logging.StreamHandler(sys.stderr)
handler.setFormatter(logging.Formatter("OWN %(levelname)s %(name)s [%(task_id)s %(task)s %(attempt)s] %(message)s"))
logging.basicConfig(level=logging.INFO, handlers=[handler])
logging.getLogger("shop.quiet").setLevel(logging.CRITICAL)
structlog.configure(
    processors=[structlog.contextvars.merge_contextvars, structlog.processors.KeyValueRenderer(sort_keys=True)],
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
)


def configuration() -> list[Any]:
    """Everything of the configuration that somebody could have changed."""
    root = logging.getLogger()
    return [
        root.level,
        root.handlers,
        root.filters,
        root.disabled,
        handler.level,
        handler.formatter,
        handler.filters,
        logging.getLogger("shop.quiet").level,
        logging.getLogRecordFactory(),
        logging.getLoggerClass(),
        logging.root.manager.disable,
        logging.getLogger("taskq").handlers,
        logging.getLogger("kombu").handlers,
        structlog.get_config(),
    ]


at_import = [list(value) if isinstance(value, list) else value for value in configuration()]


@app.task(name="untouched")
def untouched() -> bool:
    return configuration() == at_import
