# SPDX-License-Identifier: GPL-2.0-only
"""Would the suite notice if the code were wrong? Plant faults in a kernel, one at a time, and test each."""
