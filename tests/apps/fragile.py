"""An application whose import ends the process, except in the zygote, for as long as the gate ``mended`` is shut."""

from __future__ import annotations

import os

from tests.apps.basic import app
from tests.apps.traces import gate, trace

seen = gate("imported")
if seen.exists() and not gate("mended").exists():
    trace("import failed")
    os._exit(9)
seen.touch()

__all__ = ["app"]
