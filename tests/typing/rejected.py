"""Wrong calls: mypy and pyright must reject each line that ends in the mark. Only type-checked, never run."""

from __future__ import annotations

from taskq import AsyncResult, Attempt, TaskQ, task
from taskq.testing import assert_idempotent, worker

app = TaskQ("shop")


@app.task
def add(a: int, b: int = 1) -> int:
    return a + b


@app.task(queue="mail")
def send_mail(to: str, *, subject: str) -> None: ...


@app.task(bind=True)
def report(attempt: Attempt, day: str) -> list[str]:
    return [attempt.id, day]


@task(bind=True)
def reusable_bound(attempt: Attempt, text: str) -> str:
    return text


@app.task(bind=True)
def again(attempt: Attempt) -> int:
    attempt.retry(countdown="soon")  # rejected
    return 1


@app.task(bind=True)
def perhaps(attempt: Attempt) -> int:  # rejected
    attempt.retry(throw=False)


add.delay()  # rejected
add.delay("1")  # rejected
add.delay(1, 2, 3)  # rejected
add.delay(1, c=2)  # rejected
add.delay(1, b="2")  # rejected
add("1")  # rejected
add.s("1").delay()  # rejected
add.si("1")  # rejected
text: str = add.delay(1).get()  # rejected
lengths: AsyncResult[str] = add.delay(1)  # rejected

send_mail.delay("ann@example.org")  # rejected
send_mail.delay("ann@example.org", "hi")  # rejected
send_mail.delay(to="ann@example.org", subject=1)  # rejected

report.delay()  # rejected
report.delay(7)  # rejected
report.delay(Attempt(id="1", task="report"), "monday")  # rejected
report("monday", "tuesday")  # rejected
report.delay(attempt=Attempt(id="1", task="report"), day="monday")  # rejected
reusable_bound.delay(1)  # rejected
reusable_bound.s().delay()  # rejected
app.send_many([add.s()])  # rejected
(add.s(1) | send_mail.s("a", subject="b")).delay().get() + 1  # rejected

add.apply_async((1,), countdwn=5)  # rejected
add.apply_async((1,), countdown="5")  # rejected
add.apply_async((1,), priority=2.5)  # rejected
add.apply_async((1,), time_limit="5")  # rejected
app.send_task("shop.add", [1], queu="mail")  # rejected
app.send_many([1])  # rejected
app.purge_dead(resaon="crashed")  # rejected
app.replay(since="2h")  # rejected


@app.task(quue="mail")  # rejected
def misspelt_option() -> None: ...


@app.task(bind=True)  # rejected
def bound_without_attempt(day: str) -> None: ...


@app.task(autoretry_for=OSError)  # rejected
def no_tuple() -> None: ...


@app.task(on_timeout="again")  # rejected
def misspelt_choice() -> None: ...


@app.task(retry_on=str.upper)  # rejected
def no_question() -> None: ...


worker(app).run()  # rejected
worker(app, queue="slow")  # rejected
assert_idempotent(add, 1)  # rejected
assert_idempotent(len, [], check=list)  # rejected
