"""The embedded broker: a Kombu transport on one SQLite file, and taskq's session and consumer on it.

Importing this package makes ``kombu.Connection("sqlite:////absolute/file.db")`` work.
"""

from kombu.transport import TRANSPORT_ALIASES

TRANSPORT_ALIASES["sqlite"] = "taskq.broker.sqlite.transport:Transport"
