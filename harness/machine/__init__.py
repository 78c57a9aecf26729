# SPDX-License-Identifier: GPL-2.0-only
"""Machine, a value that describes a VM, and VM, which runs one."""
