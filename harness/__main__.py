# SPDX-License-Identifier: GPL-2.0-only
"""`python -m harness` is `vfio-harness`."""

from harness.cli.main import main

if __name__ == "__main__":
    main()
