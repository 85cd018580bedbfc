"""
Leaves processes behind in ways that are hard to see.  `orphans.py HOW FOLDER`:

`ending`   daemonizes a helper while it ends, with pauses of up to 2 ms
`renew-N`  has a daemon that replaces itself every N ms by a child of its own
`threads`  has a daemon whose main thread has ended while another one runs
`limit`    sets RLIMIT_RSS for itself, then daemonizes a helper
`limits`   helpers in its group, and in a group of their own, with all limits lowered

All processes of a session share the lock of one file in FOLDER, which the
kernel frees when the last of them is gone.
"""

import ctypes
import fcntl
import os
import random
import resource
import signal
import sys
import threading
import time

HOW, FOLDER = sys.argv[1:3]
LOCKS = 10
lock = os.open(f"{FOLDER}/{os.getpid()}", os.O_WRONLY | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)


def lower(*numbers: int) -> None:
    """Set a soft and hard limit that nothing reaches."""
    for number in numbers:
        resource.setrlimit(number, (1 << 30, 1 << 30))


def pause() -> None:
    """Sleep up to 2 ms."""
    time.sleep(random.random() * 0.002)


def close_stdio() -> None:
    """Close all descriptors that the bridge could see."""
    for descriptor in range(3):
        os.close(descriptor)


def sleep() -> None:
    """Become a helper that ignores SIGTERM."""
    close_stdio()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(600)


def daemonize(pauses: bool = False) -> bool:
    """Fork twice; True in the daemon."""
    if os.fork():
        return False
    if pauses:
        pause()
    os.setsid()
    if os.fork():
        if pauses:
            pause()
        os._exit(0)
    if pauses:
        pause()
    return True


def renew(seconds: float) -> None:
    """Fork and exit repeatedly."""
    close_stdio()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        time.sleep(seconds)
        if os.fork():
            os._exit(0)
        os.setsid()
    os._exit(0)


def leave_main_thread() -> None:
    """End only the main thread: the process is then a `Z` with a thread that runs."""
    close_stdio()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=time.sleep, args=(600,)).start()
    # `pthread_exit` would unwind the interpreter; the system call ends the thread alone.
    ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)


if HOW.startswith("renew-"):
    if daemonize():
        renew(int(HOW.partition("-")[2]) / 1000)
elif HOW == "threads":
    if daemonize():
        leave_main_thread()
elif HOW == "limit":
    lower(resource.RLIMIT_RSS)
    if daemonize():
        sleep()
elif HOW == "limits":
    for group in (False, True):
        if os.fork() == 0:
            if group:
                os.setpgid(0, 0)
            lower(resource.RLIMIT_RSS, LOCKS)
            sleep()
time.sleep(0.02)
os.write(1, b'{"jsonrpc":"2.0","method":"ready"}\n')
sys.stdin.buffer.read()
if HOW == "ending" and os.fork() == 0:
    pause()
    if daemonize(pauses=True):
        sleep()
    os._exit(0)
