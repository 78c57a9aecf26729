# SPDX-License-Identifier: GPL-2.0-only
"""Functions of a C file in the kernel's style."""

from __future__ import annotations

import pytest

from harness.base.csource import find_functions, parse, walk


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("static int helper(int a)", "helper"),
        (
            "static struct iommu_domain *\nvfio_noiommu_alloc(struct device *dev,\n\tu32 flags)",
            "vfio_noiommu_alloc",
        ),
        ("int plain(int a)\n", "plain"),
        ("int DOMAIN_NS(map_range)(struct pt_iommu *iommu)", "map_range"),
        ("static int __maybe_unused NS(set_dirty)(struct pt_iommu *iommu)", "set_dirty"),
        ("static void __latent_entropy irq_poll_softirq(void)", "irq_poll_softirq"),
        ("static __printf(1, 0)\nvoid __warn_printf(const char *fmt)", "__warn_printf"),
        ("static __poll_t eventq_poll(struct file *filep)", "eventq_poll"),
        ("static struct __thing *find(__u32 id)", "find"),
        ("__u64 get(void)", "get"),
    ],
)
def test_name_and_lines_of_a_function(head: str, name: str) -> None:
    source = "struct s\n{\n\tint type;\n};\n\n/* What it does. */\n"
    source += f"{head}\n{{\n\tif (a) {{\n\t\tb();\n\t}}\n}}\n"
    lines = len(source.splitlines())
    assert [(one.name, one.lines) for one in find_functions(source)] == [(name, range(7, lines + 1))]


def test_both_ways_of_the_preprocessor() -> None:
    source = "#ifdef A\nint f(void)\n{\n\treturn 1;\n}\n#else\nint f(void) { return 0; }\n#endif\n"
    assert [(one.name, one.start, one.end) for one in find_functions(source)] == [("f", 2, 5), ("f", 7, 7)]


def test_long_initializers_are_walked() -> None:
    """Some tables of the kernel nest deeper than Python's stack."""
    source = f"int x = {' + '.join('1' * 3000)};\n"
    assert sum(node.type == "number_literal" for node in walk(parse(source))) == 3000
