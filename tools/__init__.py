# SPDX-License-Identifier: GPL-2.0-only
"""Tools for maintainers of the harness."""
