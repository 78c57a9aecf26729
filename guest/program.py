# SPDX-License-Identifier: GPL-2.0-only
"""Run a program of the user's: its devices are bound before it and the ground state is restored after it.

    python3 -m guest.program '{"name": "mytest", "directory": "/run/vfio-harness/own/mytest",
        "argv": ["./mytest", "--fast"], "devices": {"edu0": "0000:00:04.0"}, "features": ["noiommu", "edu"],
        "not_started": 99}'

Its output passes unchanged, and its exit status is ours, 128+N if signal N ended it; `not_started` is our
status if it was not started, and the last line says why.  docs/own-tests.md documents environment().
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from guest import agent, kmsg, libc, pci
from guest.ground import REAP_TIMEOUT, Ground

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(argv: Sequence[str]) -> int:
    """Run the program that *argv* describes as JSON; return the exit status."""
    asked: Mapping[str, Any] = json.loads(argv[0])
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    devices: Mapping[str, str] = asked["devices"]
    ground = Ground(tuple(devices.values()))
    kmsg.say(f"{kmsg.BEGIN} {asked['name']}")
    try:
        agent.load_modules(asked["features"])
        _bind(devices.values(), asked["features"])
        os.chdir(asked["directory"])
        status = _run(asked["argv"], {**os.environ, **environment(devices)})
        if status == asked["not_started"]:
            # It would be taken for ours.
            print(f"# exit status {status}", flush=True)
            status = 1
    except (OSError, pci.StuckWrite) as error:
        print(f"cannot start {asked['name']}: {error}", flush=True)
        status = int(asked["not_started"])
    for problem in ground.restore().dirty:
        print(f"# {agent.DIRTY}{problem}", flush=True)
    kmsg.say(f"{kmsg.END} {asked['name']}")
    return status


def _bind(bdfs: Collection[str], features: Collection[str]) -> None:
    """Bind those devices to vfio-pci that this kernel can bind: the others are left alone."""
    for bdf in bdfs:
        if "noiommu" in features or pci.has_iommu(bdf):
            pci.prepare(bdf)


def environment(devices: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that name *devices* and their nodes, and those with which `import guest` works."""
    found = {
        "PYTHONPATH": _HOME,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "VFIO_DEVICES": " ".join(devices),
    }
    for name, bdf in devices.items():
        nodes = pci.vfio_nodes(bdf)
        known = {"BDF": bdf, "GROUP": nodes.group, "CDEV": nodes.cdev}
        own = {key: str(value) for key, value in known.items() if value is not None}
        word = re.sub(r"\W", "_", name.upper())
        found.update({f"VFIO_{word}_{key}": value for key, value in own.items()})
        if bdf == next(iter(devices.values())):
            found.update({f"VFIO_{key}": value for key, value in own.items()})
            # Upstream's libvfio reads it (tools/testing/selftests/vfio/lib/libvfio.c get_bdf_env()).
            found["VFIO_SELFTESTS_BDF"] = bdf
    return found


def _run(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run *argv*, and kill all that it leaves running; return its exit status."""
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    pid = os.posix_spawnp(argv[0], list(argv), env, setpgroup=0, file_actions=actions)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not _kill_rest():
        print(f"# {agent.DIRTY}processes of the program did not die", flush=True)
    return code if code >= 0 else 128 - code


def _kill_rest() -> bool:
    """Kill all descendants, which become our children when their parent dies; return whether none is left."""
    deadline = time.monotonic() + REAP_TIMEOUT
    while time.monotonic() < deadline:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
        except ChildProcessError:
            return True
    return False


def _children() -> Iterator[int]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # Fields are counted after the command's name, which may contain blanks (proc_pid_stat(5)).
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                yield int(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
