# SPDX-License-Identifier: GPL-2.0-only
"""Serve the agent from a loaded process: each connection to PORT is a fork that is ready at once.

Started at boot beside the SSH server.  Loading Python and the probes takes a second under emulation; here it
happens while the SSH server starts, or before the snapshot is taken and thus not at all.  The host connects
through SSH (`direct-tcpip`), and sends its request in one line, as a JSON list of words:

    ["agent", "--features", "noiommu,edu"]     what `python3 -m guest.agent` does with these arguments
    ["facts", "1700000000.0"]                  guest.facts, after setting the clock to that time
    ["remove", "0000:00:05.0"]                 remove PCI devices, as before a snapshot
    ["rescan", "1700000000.0"]                 rescan the PCI buses, then as facts
    ["prepare", "noiommu,edu", "0000:00:05.0"] bind devices as for a probe; {BDF: [nodes] or why not}
    ["counters", "reset"]                      set the coverage counters to zero
    ["counters", "collect"]                    the coverage counters, as guest.gcov collects them
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, Union

from guest import agent, case, facts, gcov, kmsg, pci
from guest.needs import parse_features
from guest.program import environment

PORT = 7706
"""On the guest's loopback; nothing else listens there."""

READY = "vfio-harness: agent: ready"
"""Logged by the kernel once connections are served; the host reads it on the console."""

RNDRESEEDCRNG = 0x5207
"""_IO('R', 0x07) of include/uapi/linux/random.h."""

_LINE_LIMIT = 64 * 1024

_FAULT_AROUND = Path("/sys/kernel/debug/fault_around_bytes")
"""How much of a mapped file one page fault maps (mm/memory.c do_fault_around()), 64 KiB by default."""

_MAPPED_AT_ONCE = 1 << 20
"""Every fork faults in the code of Python and its libraries again: 75 of 730 faults of a small case fewer."""


def listen(port: int = PORT) -> NoReturn:
    """Serve connections until the machine is shut down."""
    case.discover(case.PROBES)
    _settle()
    # Nobody waits for the processes of old connections, so the kernel reaps them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.create_server(("127.0.0.1", port)) as server:
        # Saves the host from polling the port, which keeps an emulated SSH server busy.
        kmsg.say(READY)
        while True:
            try:
                connection, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    _child(connection)
                connection.close()
            except OSError:
                # A case has used up memory or processes; the next connection may succeed.
                time.sleep(0.1)


def _settle() -> None:
    """Load what every case would load again in its fork, and keep the garbage collector from what is there:
    its first full collection in a fork would write to every object, and so copy every page."""
    codecs.lookup("ascii")
    gc.freeze()


def _child(connection: socket.socket) -> NoReturn:
    code = 70  # EX_SOFTWARE of sysexits.h: the runner itself failed
    try:
        # The agent must be able to wait for its children, and end when the host disconnects.
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
    """Serve the request *words* on standard input and output; return an exit status, which nobody reads."""
    doings: dict[str, Callable[[Sequence[str]], int]] = {
        "agent": agent.main,
        "facts": _tell_facts,
        "remove": _remove,
        "rescan": _rescan,
        "prepare": _prepare,
        "counters": _counters,
    }
    if not isinstance(words, list) or not words or words[0] not in doings:
        print(f"resident: unknown request {words[:1]!r}; known: {', '.join(doings)}", file=sys.stderr)
        return 2
    return doings[words[0]](words[1:])


def _tell_facts(words: Sequence[str]) -> int:
    for now in words:
        # The clock of a restored machine is at the time of its snapshot.
        time.clock_settime(time.CLOCK_REALTIME, float(now))
    gathered = facts.gather()
    if words:
        _reseed(gathered["nonce"])
        kmsg.say(f"{kmsg.PROOF} {gathered['nonce']}")
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


def _prepare(words: Sequence[str]) -> int:
    features, *named = words
    devices = dict(word.split("=", 1) for word in named)
    agent.load_modules(parse_features(features))
    found: dict[str, Union[list[str], str]] = {}
    for bdf in devices.values():
        try:
            nodes = pci.prepare(bdf)
            found[bdf] = [str(node) for node in (nodes.group, nodes.cdev) if node is not None]
        except (OSError, pci.StuckWrite) as error:
            found[bdf] = str(error)
    print(json.dumps({"nodes": found, "environment": environment(devices)}))
    return 0


def _counters(words: Sequence[str]) -> int:
    counters = gcov.Counters()
    if words == ["reset"]:
        counters.reset()
        print("reset")
    else:
        print(counters.collect())
    return 0


def _reseed(nonce: str) -> None:
    """Reseed the random numbers, so that machines restored from one snapshot do not share them."""
    with open("/dev/urandom", "wb", buffering=0) as urandom:
        urandom.write(nonce.encode())
        fcntl.ioctl(urandom, RNDRESEEDCRNG)


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        _FAULT_AROUND.write_text(str(_MAPPED_AT_ONCE), encoding="ascii")
    listen()
