"""An application that starts a thread while it is imported, which makes forking unsafe."""

from __future__ import annotations

import threading

from tests.apps.basic import app

threading.Thread(target=threading.Event().wait, daemon=True).start()

__all__ = ["app"]
