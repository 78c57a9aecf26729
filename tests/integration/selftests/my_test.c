// SPDX-License-Identifier: GPL-2.0-only
/* A developer's own selftest: only the Makefile names it. */
#include <libgen.h>
#include <linux/limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kselftest.h"

int main(int argc, char *argv[])
{
	char path[PATH_MAX], driver[PATH_MAX] = {};

	ksft_print_header();
	ksft_set_plan(1);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver", argv[argc - 1]);
	if (readlink(path, driver, sizeof(driver) - 1) < 0)
		ksft_exit_fail_perror("readlink");
	ksft_test_result(!strcmp(basename(driver), "vfio-pci"), "bound\n");
	ksft_finished();
}
