# SPDX-License-Identifier: GPL-2.0-only
"""Plant faults in a kernel, one at a time, to see whether the cases notice a mistake in its code."""
