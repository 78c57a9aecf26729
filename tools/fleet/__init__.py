# SPDX-License-Identifier: GPL-2.0-only
"""Simulations of a fleet: what handing out units costs, and how close to the best a run ends."""
