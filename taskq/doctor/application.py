"""The application: whether it can be imported, and whether the settings let its tasks and schedules do what they want."""

from __future__ import annotations

from collections.abc import Iterator

from taskq.doctor.finding import Finding, error, ok, warning
from taskq.doctor.patient import Patient
from taskq.duration import spelled

#: An import that takes longer than this delays each start and each reload, in seconds.
_SLOW = 10.0


def imports(patient: Patient) -> Iterator[Finding]:
    """Whether the application can be imported, how long that takes and what it leaves running."""
    if patient.spec is None:
        yield ok("application", "none was named, so its tasks and settings are not looked at; -A names one")
        return
    if patient.failure is not None:
        yield error("application", patient.failure, "mend it; what follows is about settings and servers alone")
        return
    app = patient.app
    yield ok("application", f"{app.name} was imported in {spelled(patient.seconds)}, with {_count(len(app.tasks), 'task')}")
    if patient.seconds > _SLOW:
        text = f"the import took {spelled(patient.seconds)}, which delays each start of a worker"
        yield warning("application", text, "import what is heavy inside the tasks that need it")
    if patient.threads > 0 and patient.settings.start_method == "fork":
        text = f"the import starts {_count(patient.threads, 'thread')}, so that children can't be forked, and start slowly"
        yield warning("application", text, "start threads when they are first used, or set start_method to spawn")
    if patient.connections and patient.settings.start_method == "fork":
        peers = ", ".join(patient.connections)
        text = f"the import leaves connections open, to {peers}, so that children can't be forked, and start slowly"
        yield warning("application", text, "connect when a task first needs it, or set start_method to spawn")
    if not app.tasks:
        yield warning("application", f"{app.name} has no tasks", "import the modules that define them where the app is made")


def results(patient: Patient) -> Iterator[Finding]:
    """Whether results go where those who want them find them."""
    app, settings = patient.app, patient.settings
    if settings.keeps_results:
        return
    mend = "set backend to an sqlite, redis or postgresql URL"
    if app.schedules:
        text = f"schedules ({', '.join(app.schedules)}) need a backend that remembers what was sent, not {settings.backend!r}"
        yield error("results", text, f"{mend}, or run the workers with --no-scheduler")
    careful = [name for name, task in app.tasks.items() if not task.acks_late]
    if careful:
        text = f"without a backend, nobody knows whether {_some(careful)} had begun when a worker dies: it is dead-lettered"
        yield warning("results", text, mend)
    if settings.backend == "off":
        wanting = [name for name, task in app.tasks.items() if not task.defaults.get("ignore_result")]
        if wanting:
            text = f"results are off, and {_some(wanting)} return some: result.get() raises ResultsDisabled"
            yield warning("results", text, f"{mend}, or give the tasks ignore_result=True")


def _some(names: list[str]) -> str:
    """The first few of these names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
