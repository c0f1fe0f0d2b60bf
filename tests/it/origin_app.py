"""A program that holds scheduler_lock as the origin does, with nothing but Python's own sqlite3.

    origin_app.py DB TTL BEAT [--rounds N]

Waits for the lock, proves by flock on `witness` that nobody else's work is alive, and renews until SIGTERM. With --rounds it
takes and gives back the lock N times, with a little work in between. Writes what it did to `app-events`, one line each.
"""

import fcntl
import os
import signal
import socket
import sqlite3
import sys
import time

SCHEMA = """CREATE TABLE IF NOT EXISTS scheduler_lock(id INTEGER PRIMARY KEY CHECK (id = 1),
            pid INTEGER, hostname TEXT, created_at REAL, heartbeat_at REAL)"""
ME = (os.getpid(), socket.gethostname())


def say(event):
    line = f"{event} {os.getpid()}\n".encode()
    file = os.open("app-events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, line)
    os.close(file)


def acquire(db, ttl):
    now = time.time()
    with db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM scheduler_lock WHERE heartbeat_at < ?", (now - ttl,))
        try:
            db.execute("INSERT INTO scheduler_lock VALUES (1, ?, ?, ?, ?)", (*ME, now, now))
        except sqlite3.IntegrityError:
            return False
    return True


def heartbeat(db):
    with db:
        moved = db.execute("UPDATE scheduler_lock SET heartbeat_at = ? WHERE id = 1 AND pid = ? AND hostname = ?", (time.time(), *ME))
    return moved.rowcount == 1


def release(db):
    with db:
        db.execute("DELETE FROM scheduler_lock WHERE id = 1 AND pid = ? AND hostname = ?", ME)


def wait_for_lock(db, ttl, stopped):
    said = False
    while not acquire(db, ttl):
        if not said:
            say("waiting")
            said = True
        if stopped:
            sys.exit(0)
        time.sleep(0.01)


def witness():
    """The flock that everybody's work takes; whoever finds it taken has found two at work."""
    file = os.open("witness", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with open("overlaps", "a") as overlaps:
            overlaps.write(f"overlap application {os.getpid()}\n")
    return file


def main():
    path, ttl, beat = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    rounds = int(sys.argv[5]) if sys.argv[4:5] == ["--rounds"] else 0
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    db.execute(SCHEMA)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))

    if rounds:
        for _ in range(rounds):
            wait_for_lock(db, ttl, stopped)
            file = witness()
            time.sleep(0.005)
            os.close(file)
            say("round")
            release(db)
        return 0

    wait_for_lock(db, ttl, stopped)
    file = witness()
    say("holding")
    while not stopped:
        time.sleep(beat)
        if not heartbeat(db):
            say("lost")
            return 3
    os.close(file)
    release(db)
    say("released")
    return 0


sys.exit(main())
