# SPDX-License-Identifier: GPL-2.0-only
"""The resident agent on this machine, reached over loopback; no test here may change the machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from guest import case, facts

CHECKOUT = Path(__file__).resolve().parents[2]
READY = "vfio-harness: agent: ready\n"
LIMIT = 20.0

SERVER = """
import sys
from guest import kmsg, resident

def say(text):
    with open(sys.argv[2], "a", encoding="utf-8") as log:
        log.write(text + "\\n")

# Keep tests out of this machine's kernel log.
kmsg.say = say
resident.listen(int(sys.argv[1]))
"""


@dataclasses.dataclass(frozen=True)
class Server:
    """A running guest.resident."""

    process: subprocess.Popen[bytes]
    port: int
    kmsg: Path
    """The messages that it wrote to the kernel log."""

    @property
    def children(self) -> list[int]:
        """The processes of its connections, including zombies."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
                if int(parent) == self.process.pid:
                    found.append(int(stat.parent.name))
        return found


class Client:
    """One connection; closed at the end of the `with`."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._socket.close()

    def send(self, value: object) -> None:
        """Send a line of JSON."""
        self.send_bytes(json.dumps(value).encode() + b"\n")

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def finish(self) -> None:
        """Shut down sending, and keep receiving."""
        self._socket.shutdown(socket.SHUT_WR)

    def line(self) -> str:
        return self._file.readline().decode()

    def rest(self) -> str:
        """Return everything until the other end closes."""
        return self._file.read().decode()


def _wait(what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"waited {LIMIT:g} s until {what}"
        time.sleep(0.01)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module", name="server")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests: each test shows that it survived the earlier ones."""
    where = tmp_path_factory.mktemp("resident")
    kmsg = where / "kmsg"
    kmsg.touch()
    argv = [sys.executable, "-c", SERVER, str(_free_port()), os.fspath(kmsg)]
    with (
        (where / "stderr").open("wb") as stderr,
        subprocess.Popen(argv, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stderr=stderr) as process,
    ):
        server = Server(process, int(argv[3]), kmsg)
        try:
            _wait("it listens", lambda: process.poll() is not None or READY in kmsg.read_text())
            assert process.poll() is None, (where / "stderr").read_text()
            yield server
            assert process.poll() is None, (where / "stderr").read_text()
        finally:
            children: list[int] = []
            try:
                children = server.children
            finally:
                process.kill()
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _ask(server: Server, *words: str) -> str:
    with Client(server) as client:
        client.send(words)
        return client.rest()


def test_facts_are_one_document(server: Server) -> None:
    """A request needs no end of input after its line, and the answer is the document of guest.facts."""
    answer = _ask(server, "facts")
    assert answer.endswith("}\n")
    told, here = json.loads(answer), facts.gather()
    assert told.pop("uptime") <= here.pop("uptime")
    assert told == here


def test_devices_that_cannot_be_prepared(server: Server) -> None:
    """Each has its reason, in place of its nodes."""
    assert json.loads(_ask(server, "prepare", "edu"))["nodes"] == {}
    told = json.loads(_ask(server, "prepare", "", "a=ffff:00:00.0", "b=ffff:00:01.0"))
    assert list(told["nodes"]) == ["ffff:00:00.0", "ffff:00:01.0"]
    assert all("No such file or directory" in why for why in told["nodes"].values())
    assert told["environment"]["VFIO_DEVICES"] == "a b"
    assert told["environment"]["VFIO_B_BDF"] == "ffff:00:01.0"


def test_a_list_of_cases(server: Server) -> None:
    """The list is what `python3 -m guest.agent --list` prints."""
    rows = [line.split("\t") for line in _ask(server, "agent", "--list").splitlines()]
    assert [row[0] for row in rows] == [one.address for one in case.discover()]
    assert all(len(row) == 3 for row in rows)


def test_the_agent_serves_requests(server: Server) -> None:
    """The agent answers each request at once and ends with its input."""
    with Client(server) as client:
        client.send(["agent"])
        assert client.line() == "# agent ready 1\n"
        for name in ("no/such_case", "no/other_case"):
            client.send({"case": name})
            answer = [client.line() for _ in range(5)]
            assert answer[:2] == ["KTAP version 1\n", "1..1\n"]
            assert answer[2].startswith(f"# refused: no case is called {name!r}")
            assert answer[3:] == [f"not ok 1 {name}\n", f"# END {name}\n"]
        client.finish()
        assert client.rest() == ""


def test_what_is_sent_at_once_is_answered_in_order(server: Server) -> None:
    """Requests in the same packet after the first line are not lost."""
    with Client(server) as client:
        client.send_bytes(b'["agent", "--features", "edu"]\n{"case": "no/one"}\n{"case": "no/two"}\n')
        client.finish()
        lines = client.rest().splitlines()
    assert lines[0] == "# agent ready 1"
    assert [line for line in lines if line.startswith("# END")] == ["# END no/one", "# END no/two"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["fcats"], "resident: unknown request ['fcats']; known: agent, facts"),
        ([], "resident: unknown request []; known: agent, facts"),
        (["agent", "--features", "noiomu"], "agent: --features: unknown feature 'noiomu'"),
        (["agent", "--nonsense"], "usage: guest.agent "),
    ],
)
def test_what_is_wrong_is_told_to_who_asked(server: Server, words: list[str], complaint: str) -> None:
    """The connection ends with the reason, and the next one is served."""
    assert _ask(server, *words).startswith(complaint)
    assert json.loads(_ask(server, "facts"))


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"\n",
        b"rubbish\n",
        b"\xff\xfe\x00\n",
        b'["agent"',
        b"3\n",
        b"null\n",
        b"{}\n",
        b"[[]]\n",
        b"[3]\n",
        b'["agent", 3]\n',
        b"[" * 10_000 + b"\n",
        b"x" * 200_000,
        b"SSH-2.0-somebody\r\n",
    ],
    ids=lambda rubbish: repr(rubbish[:12]),
)
def test_rubbish_ends_its_own_connection_only(server: Server, rubbish: bytes) -> None:
    # The connection may end with a reset if more was sent than one line may have.
    with Client(server) as client, contextlib.suppress(ConnectionError):
        client.send_bytes(rubbish)
        client.finish()
        client.rest()
    assert server.process.poll() is None
    assert json.loads(_ask(server, "facts"))


def test_two_connections_are_served_at_a_time(server: Server) -> None:
    """A connection that has sent nothing, or has not ended, does not block others."""
    with Client(server) as silent, Client(server) as first, Client(server) as second:
        first.send(["agent"])
        assert first.line() == "# agent ready 1\n"
        second.send(["agent"])
        assert second.line() == "# agent ready 1\n"
        first.send({"case": "no/first"})
        second.send({"case": "no/second"})
        assert [second.line() for _ in range(5)][-1] == "# END no/second\n"
        assert [first.line() for _ in range(5)][-1] == "# END no/first\n"
        first.finish()
        assert first.rest() == "", "another process has the first connection open"
        second.send({"case": "no/third"})
        assert [second.line() for _ in range(5)][-1] == "# END no/third\n"
        silent.send(["facts"])
        assert json.loads(silent.rest())


def test_an_agent_ends_when_its_host_goes_away(server: Server) -> None:
    """When the host disconnects, the agent ends and leaves no zombie, since in a guest no other process would
    reap it."""
    _wait("the connections of earlier tests are gone", lambda: not server.children)
    with Client(server) as client:
        client.send(["agent"])
        assert client.line() == "# agent ready 1\n"
        assert len(server.children) == 1
    _wait("the agent is gone", lambda: not server.children)
    assert json.loads(_ask(server, "facts"))


def test_the_console_hears_once_that_it_listens(server: Server) -> None:
    """The agent logs once that it is ready: the host waits for that line instead of polling the port."""
    assert json.loads(_ask(server, "facts"))
    assert server.kmsg.read_text(encoding="utf-8") == READY


def test_what_a_guest_loads_is_small() -> None:
    """Loading Python is half of a guest's boot under emulation, and every fork pays for what is loaded."""
    code = (
        "import sys; sys.path.insert(0, '.'); from guest import case, resident; case.discover(case.PROBES); "
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    dear = {"dataclasses", "difflib", "inspect", "platform", "subprocess", "tempfile", "uuid"}
    assert dear.isdisjoint(done.stdout.split())
