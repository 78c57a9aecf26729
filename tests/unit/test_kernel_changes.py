# SPDX-License-Identifier: GPL-2.0-only
"""The lines that differ, read from git's diff."""

from __future__ import annotations

from harness.kernel.changes import Change, parse_diff

DIFF = """\
diff --git a/drivers/vfio/group.c b/drivers/vfio/group.c
index 1..2 100644
--- a/drivers/vfio/group.c
+++ b/drivers/vfio/group.c
@@ -10,2 +10 @@ int f(void)
-	a();
--- a/looks/like/a/header
+	b();
@@ -20,0 +20,2 @@ int g(void)
+	c();
+	d();
diff --git a/Kconfig b/Kconfig
new file mode 100644
--- /dev/null
+++ b/Kconfig
@@ -0,0 +1 @@
+config X
\\ No newline at end of file
diff --git a/logo.bin b/logo.bin
Binary files a/logo.bin and b/logo.bin differ
"""


def test_hunks_of_each_file() -> None:
    assert list(parse_diff(DIFF)) == [
        Change("drivers/vfio/group.c", frozenset({10, 11}), frozenset({10, 20, 21})),
        Change("Kconfig", frozenset(), frozenset({1})),
        Change("logo.bin", frozenset(), frozenset()),
    ]


def test_no_difference() -> None:
    assert list(parse_diff("")) == []
