# SPDX-License-Identifier: GPL-2.0-only
"""The guest's side of the host-action port, with a pseudo-terminal as the host."""

from __future__ import annotations

import json
import os
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from guest.hostlink import HostLink, HostRefused, HostSilent


@contextmanager
def _host(answer: Callable[[dict[str, object]], list[dict[str, object]]]) -> Iterator[HostLink]:
    host, guest = os.openpty()
    tty.setraw(host)
    tty.setraw(guest)

    def serve() -> None:
        request = json.loads(os.read(host, 4096))
        for line in answer(request):
            os.write(host, json.dumps(line).encode() + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    link = HostLink(os.ttyname(guest))
    try:
        yield link
    finally:
        thread.join()
        link.close()
        os.close(host)
        os.close(guest)


def test_a_request_is_one_json_line_and_waits_for_its_own_answer() -> None:
    seen: list[dict[str, object]] = []

    def answer(request: dict[str, object]) -> list[dict[str, object]]:
        seen.append(request)
        return [{"id": 99, "ok": False, "error": "somebody else's"}, {"id": request["id"], "ok": True}]

    with _host(answer) as link:
        link.unplug("edu0")
    assert seen == [{"id": 1, "action": "unplug", "device": "edu0"}]


def test_a_refusal_carries_the_hosts_reason() -> None:
    with (
        _host(lambda request: [{"id": request["id"], "ok": False, "error": "no such device"}]) as link,
        pytest.raises(HostRefused, match="refused plug: no such device"),
    ):
        link.plug("edu7")


def test_silence_is_not_success() -> None:
    with _host(lambda request: []) as link, pytest.raises(HostSilent, match="did not answer nmi in time"):
        link.request("nmi", timeout=0.1)


def test_a_missing_port_is_said_so() -> None:
    with pytest.raises(HostSilent, match="cannot open the port to the host"):
        HostLink("/does/not/exist").nmi()
