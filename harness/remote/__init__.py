# SPDX-License-Identifier: GPL-2.0-only
"""The Guest: a VM's userspace over SSH.  The only user of paramiko."""

from harness.remote.guest import Completed, Endpoint, Guest, Stream
from harness.remote.terminal import interact

__all__ = ["Completed", "Endpoint", "Guest", "Stream", "interact"]
