"""What ``taskq worker`` runs: a supervisor that holds messages and never runs user code, and children that run it.

::

    broker ──► supervisor ──pipe──► child          a zygote imports the application once
       ▲       holds every            │            and forks the children
       │       unacked message        │ Outcome
       └─ ack ─ settle(outcome) ◄─────┘

Read in this order: ``supervisor`` (the loop), ``custody`` (what it holds), ``slot`` and ``pipe`` (what goes to a child and
back), ``child`` and ``execute`` (the run of a task), ``settle`` (the only place that acks). When things go wrong: ``limits``
ends a task, ``crashes`` decides what becomes of its message, ``suspects`` and ``limbo`` know what came back, ``watchdog``
notices silence. Installed as ``taskq.workers``.
"""
