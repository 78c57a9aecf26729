# SPDX-License-Identifier: GPL-2.0-only
"""One run: what was asked for, planned, built, given to pytest, judged against its history and reported."""
