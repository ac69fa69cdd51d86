"""Benchmarks: taskq beside Celery, Dramatiq, Huey and a bare Kombu consumer, in one run on one machine.

``python -m tests.benchmarks`` (or ``make bench``) measures; nothing here is a test. Linux only: it reads /proc.
"""
