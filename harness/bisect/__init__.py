# SPDX-License-Identifier: GPL-2.0-only
"""Find the commit that broke, or fixed, a case: git bisect chooses the commits, VMs test them."""
