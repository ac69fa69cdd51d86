"""What ``taskq worker`` runs: a supervisor that holds messages and never runs user code, and children that run it.

::

    broker ──► supervisor ──pipe──► child          a zygote imports the application once
       ▲       holds every            │            and forks the children
       │       unacked message        │ Outcome
       └─ ack ─ settle(outcome) ◄─────┘

Read in this order: ``supervisor`` (the loop), ``slot`` and ``pipe`` (what goes to a child and back), ``child`` and ``execute``
(the run of a task), ``settle`` (the only place that acks). Installed as ``taskq.workers``.
"""
