"""Commits one event for each line on stdin and prints the monotonic time at which its commit had returned."""

import sys
import time

import django

django.setup()

from django.utils import timezone  # noqa: E402 (needs the apps)

from projects.events import SWEEP, record, writing  # noqa: E402

for line in sys.stdin:
    with writing():
        record("bench.tick", "bench:1", by=SWEEP, now=timezone.now(), n=int(line))
    print(time.monotonic(), flush=True)
