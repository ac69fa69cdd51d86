"""An application whose import talks to a database, and whose tasks answer with what that says.

``IMPORT`` in the environment names the library, ``SERVER`` the URL of the database.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from taskq import TaskQ
from tests.apps.traces import trace

app = TaskQ("connected")
SERVER = os.environ["SERVER"]


def django() -> Callable[[int], int]:
    """As with a query in ``AppConfig.ready()``, which is where applications look at their settings or their migrations."""
    import django
    from django.apps import AppConfig
    from django.conf import settings
    from psycopg.conninfo import conninfo_to_dict

    about = conninfo_to_dict(SERVER)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": about["dbname"],
        "USER": about["user"],
        "PASSWORD": about["password"],
        "HOST": about["host"],
        "PORT": about["port"],
        "CONN_MAX_AGE": None,
    }

    class Shop(AppConfig):  # type: ignore[misc]  # it ships no types
        name = label = "tests.apps"
        label = "shop"
        path = os.path.dirname(__file__)

        def ready(self) -> None:
            """Ask the database for something."""
            answer(0)

    def answer(number: int) -> int:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("select %s::int", [number])
            [value] = cursor.fetchone()
        return int(value)

    settings.configure(DATABASES={"default": database}, USE_TZ=True)
    import tests.apps as package

    package.Shop = Shop  # type: ignore[attr-defined]  # where Django looks for it
    settings.INSTALLED_APPS = ["tests.apps.Shop"]
    django.setup()
    return answer


def sqlalchemy() -> Callable[[int], int]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(SERVER.replace("postgresql:", "postgresql+psycopg:"))

    def answer(number: int) -> int:
        with engine.connect() as connection:
            return int(connection.execute(sqlalchemy.text("select cast(:number as int)"), {"number": number}).scalar_one())

    return answer


def psycopg() -> Callable[[int], int]:
    """One connection of the module's, which nobody opens again."""
    import psycopg

    connection = psycopg.connect(SERVER, autocommit=True)

    def answer(number: int) -> int:
        [value] = connection.execute("select %s::int", [number]).fetchone() or [-1]
        return int(value)

    return answer


def redis() -> Callable[[int], int]:
    from redis import Redis

    client = Redis.from_url(SERVER)
    return lambda number: int(client.echo(str(number)))


def requests() -> Callable[[int], int]:
    """A session that keeps its connection to a server of HTTP."""
    import requests

    session = requests.Session()
    return lambda number: int(session.get(f"{SERVER}/{number}", timeout=10).text)


answer: Callable[[int], int] = globals()[os.environ["IMPORT"]]()
answer(0)


@app.task(name="ask")
def ask(number: int) -> int:
    trace("ask", number=number)
    return answer(number)
