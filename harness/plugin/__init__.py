# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin: `pytest -p harness.plugin --plan FILE` runs the jobs of a plan.

The hooks live in harness.plugin.hooks; this module only shows them to pytest.
"""

from harness.plugin.hooks import (
    pytest_addoption,
    pytest_collect_file,
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_configure_node,
    pytest_report_header,
    pytest_runtest_teardown,
    pytest_unconfigure,
    pytest_xdist_make_scheduler,
)

__all__ = [
    "pytest_addoption",
    "pytest_collect_file",
    "pytest_collection_finish",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_configure_node",
    "pytest_report_header",
    "pytest_runtest_teardown",
    "pytest_unconfigure",
    "pytest_xdist_make_scheduler",
]
