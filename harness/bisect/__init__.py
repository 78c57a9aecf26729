# SPDX-License-Identifier: GPL-2.0-only
"""Find the commit that changed what a case comes to: git chooses the commits, real VMs judge them."""
