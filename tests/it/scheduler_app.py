"""An APScheduler program as users have it: one interval job, an orderly shutdown on SIGTERM. Knows nothing of lockrun.

    scheduler_app.py

Its ticks fall on the wall clock's multiples of 0.2 s, so that every copy has the same ones. Each tick holds a flock while it
runs, and writes `slot token pid start end` to `ticks` (CLOCK_BOOTTIME, ns); a tick that finds the flock taken says so in
`overlaps`. `shutdown in order PID TIME` goes to `events`.
"""

import fcntl
import os
import signal
import threading
import time
from datetime import datetime, timezone

from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

PERIOD = 0.2
EPOCH = datetime(2020, 1, 1, tzinfo=timezone.utc)


def now():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def append(name, line):
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, line.encode())
    os.close(file)


def tick():
    start = now()
    file = os.open("tick", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        append("overlaps", f"overlap of ticks {os.getpid()}\n")
    time.sleep(0.03)
    end = now()
    os.close(file)
    return start, end


def executed(event):
    slot = round((event.scheduled_run_time - EPOCH).total_seconds() / PERIOD)
    start, end = event.retval
    append("ticks", f"{slot} {os.environ['LOCKRUN_TOKEN']} {os.getpid()} {start} {end}\n")


def main():
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # One worker, nothing coalesced, nothing too late: every tick runs, after the one before.
    scheduler = BackgroundScheduler(
        timezone=timezone.utc,
        executors={"default": ThreadPoolExecutor(1)},
        job_defaults={"coalesce": False, "max_instances": 1000, "misfire_grace_time": None},
    )
    scheduler.add_listener(executed, EVENT_JOB_EXECUTED)
    scheduler.add_job(tick, "interval", seconds=PERIOD, start_date=EPOCH)
    scheduler.start()
    stop.wait()
    scheduler.shutdown(wait=True)
    append("events", f"shutdown in order {os.getpid()} {now()}\n")


main()
