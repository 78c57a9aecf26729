# SPDX-License-Identifier: GPL-2.0-only
"""Which lines of a C file are no-IOMMU code."""

from __future__ import annotations

from harness.results.coverage.source import find_noiommu

TEXT = """\
#include <linux/vfio.h>

struct vfio_group
{
	int type;
};

static int helper(int a)
{
	if (a) {
		return 1;
	}
	return 0;
}

/* What it does. */
static struct iommu_domain *
vfio_noiommu_alloc(struct device *dev,
		u32 flags)
{
	return NULL;
}
"""


def noiommu(text: str, name: str = "drivers/vfio/group.c") -> list[int]:
    return sorted(find_noiommu(name, text))


def test_a_function_or_a_file_named_so_is_noiommu_code() -> None:
    assert noiommu(TEXT) == list(range(17, 23))
    assert noiommu("int a;\nint b;\n", "drivers/iommu/iommufd/hwpt_noiommu.c") == [1, 2]


def test_the_preprocessor_decides() -> None:
    text = "#ifdef CONFIG_IOMMUFD_NOIOMMU\nint a;\n#else\nint b;\n#endif\n"
    text += "#ifndef CONFIG_VFIO_NOIOMMU\nint c;\n#endif\n"
    assert noiommu(text) == [2]


def body(*lines: str) -> str:
    return "\n".join(["int f(void)", "{", *(f"\t{line}" for line in lines), "}", ""])


def test_a_condition_brings_its_block() -> None:
    text = body("int x;", "if (vfio_device_is_noiommu(d) &&", "    !capable(C)) {", "\tret = 1;", "}", "y();")
    assert noiommu(text) == [4, 5, 6, 7]


def test_a_condition_without_braces_brings_one_statement() -> None:
    text = body("if (type == VFIO_NO_IOMMU)", '\tdev_warn(d, "vfio-noiommu"', "\t\t x);", "other();")
    assert noiommu(text) == [3, 4, 5]


def test_a_negated_condition_brings_no_block() -> None:
    assert noiommu(body("if (!device_is_noiommu(d))", "\tattach();", "other();")) == [3]


def test_another_statement_counts_alone() -> None:
    assert noiommu(body("a();", "c->noiommu = (t ==", "\t      X);", "b();")) == [4, 5]
