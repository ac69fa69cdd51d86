"""The application that the images of this folder are built for, as an example."""

from taskq import TaskQ

app = TaskQ("shop")


@app.task
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@app.task(queue="mail")
def send_mail(to: str, subject: str) -> str:
    """Pretend to send a mail."""
    return f"sent {subject!r} to {to}"


app.schedule("nightly", "0 3 * * *", send_mail.s("ann@example.org", "the day's orders"))
