# SPDX-License-Identifier: GPL-2.0-only
"""Regression harness for Linux VFIO no-IOMMU; the nouns are KernelTree, Variant, Kernel, Topology, Machine,
VM, Guest, Suite, Case, Job and Run."""

__version__ = "0.1.0"
