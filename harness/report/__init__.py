# SPDX-License-Identifier: GPL-2.0-only
"""Reports: pure functions from a Run to text, one module each, and `files`, which writes them.

Nothing is imported here: showing a plan needs only `view`, and must not load the HTML templates.
"""
