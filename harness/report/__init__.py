# SPDX-License-Identifier: GPL-2.0-only
"""Reports: pure functions from a Run to text, one module each, and `files`, which writes them.

Nothing is imported here: a plan is shown with words of `view`, and must not load what makes pages.
"""
