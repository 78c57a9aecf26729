# SPDX-License-Identifier: GPL-2.0-only
"""Coverage of kernel code: counters of guests -> lines by case -> tables, reports and the map of a release.

Works on values and on the files that it is given; knows no trees, VMs or databases.
"""
