# SPDX-License-Identifier: GPL-2.0-only
"""The fleet: the work of a plan on many hosts, by Dask's distributed.

Only this package imports distributed, and only when a fleet is asked for (`pip install vfio-harness[fleet]`).
"""
