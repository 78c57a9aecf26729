# SPDX-License-Identifier: GPL-2.0-only
"""The ground floor: what every other package may use and that uses none of them."""
