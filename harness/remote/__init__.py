# SPDX-License-Identifier: GPL-2.0-only
"""The Guest: a VM's userspace over SSH.  The only user of paramiko."""

from harness.remote.guest import CommandResult, Guest, Stream
from harness.remote.terminal import interact, refuse_background

__all__ = ["CommandResult", "Guest", "Stream", "interact", "refuse_background"]
