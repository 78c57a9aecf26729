# SPDX-License-Identifier: GPL-2.0-only
"""One run: a request is checked, planned, built, carried out by pytest and reported."""
