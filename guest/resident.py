# SPDX-License-Identifier: GPL-2.0-only
"""The agent, loaded before anybody asks: every connection to PORT becomes a process that is ready at once.

Started at boot beside the SSH server.  Loading Python and the probes takes a second of an emulated processor;
here it happens while the SSH server starts, or before the machine is saved and thus not at all.  The host
comes in through SSH (`direct-tcpip`), and says in one line what it wants, as a JSON list of words:

    ["agent", "--features", "noiommu,edu"]     what `python3 -m guest.agent` does with these arguments
    ["facts", "1700000000.0"]                  guest.facts, the clock set to that second of the epoch first
    ["remove", "0000:00:05.0"]                 let go of PCI devices, which a machine about to be saved must
    ["rescan", "1700000000.0"]                 find them again, then as facts
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from guest import agent, case, facts, kmsg, pci

PORT = 7706
"""On the guest's loopback; nothing else listens there."""

READY = "vfio-harness: agent: ready"
"""What the kernel's log says once connections are served; the host reads it on the console."""

RNDRESEEDCRNG = 0x5207
"""_IO('R', 0x07) of include/uapi/linux/random.h."""

_LINE_LIMIT = 64 * 1024


def listen(port: int = PORT) -> NoReturn:
    """Serve connections for as long as the machine lives."""
    case.discover(case.PROBES)
    # Whatever ends, ends for itself: nobody waits for the processes of old connections.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.create_server(("127.0.0.1", port)) as server:
        # Whoever polls the port instead keeps an emulated SSH server busy.
        kmsg.say(READY)
        while True:
            try:
                connection, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    _child(connection)
                connection.close()
            except OSError:
                # A case has eaten memory or processes; whoever asks next may have more luck.
                time.sleep(0.1)


def _child(connection: socket.socket) -> NoReturn:
    code = 70  # EX_SOFTWARE of sysexits.h: the runner itself failed
    try:
        # The agent waits for its children, and ends when its host goes away.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.setsid()
        for fd in (0, 1, 2):
            os.dup2(connection.fileno(), fd)
        connection.close()
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)
        sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace", closefd=False)
        code = answer(json.loads(sys.stdin.readline(_LINE_LIMIT)))
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def answer(words: Sequence[str]) -> int:
    """Do what *words* say on standard input and output; return an exit status nobody sees."""
    doings: dict[str, Callable[[Sequence[str]], int]] = {
        "agent": agent.main,
        "facts": _tell_facts,
        "remove": _remove,
        "rescan": _rescan,
    }
    if not isinstance(words, list) or not words or words[0] not in doings:
        print(f"resident: there is no {words[:1]!r}; known: {', '.join(doings)}", file=sys.stderr)
        return 2
    return doings[words[0]](words[1:])


def _tell_facts(words: Sequence[str]) -> int:
    for now in words:
        # A restored machine has slept since it was saved.
        time.clock_settime(time.CLOCK_REALTIME, float(now))
    gathered = facts.gather()
    if words:
        _reseed(gathered["nonce"])
    print(json.dumps(gathered))
    return 0


def _remove(words: Sequence[str]) -> int:
    for bdf in words:
        pci.remove(bdf)
    print("removed")
    return 0


def _rescan(words: Sequence[str]) -> int:
    pci.rescan()
    return _tell_facts(words)


def _reseed(nonce: str) -> None:
    """Give machines that were restored from one snapshot random numbers of their own."""
    with open("/dev/urandom", "wb", buffering=0) as urandom:
        urandom.write(nonce.encode())
        fcntl.ioctl(urandom, RNDRESEEDCRNG)


if __name__ == "__main__":
    listen()
