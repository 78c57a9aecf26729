# SPDX-License-Identifier: GPL-2.0-only
"""From a Machine, which is a value, to a VM, which runs."""
