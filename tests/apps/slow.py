"""An application whose import lasts until the test opens the gate ``import``."""

from __future__ import annotations

from tests.apps.basic import app
from tests.apps.traces import pass_gate, trace

trace("importing")
pass_gate("import")

__all__ = ["app"]
