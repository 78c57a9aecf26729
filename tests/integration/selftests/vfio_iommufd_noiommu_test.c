// SPDX-License-Identifier: GPL-2.0-only
/*
 * A selftest in the form of upstream's: it finds its device through libvfio, and skips itself where no-IOMMU
 * mode is off. Test material: it is compiled against the libvfio of a tree that knows no-IOMMU mode.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include "kselftest_harness.h"

static const u64 iova = SZ_1M;
static const char *bdf;

static int get_pa(struct iommu *iommu, u64 at, u64 *length, u64 *phys)
{
	struct iommu_ioas_noiommu_get_pa args = {
		.size = sizeof(args),
		.ioas_id = iommu->ioas_id,
		.iova = at,
		.length = *length,
	};

	if (ioctl(iommu->iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &args))
		return -errno;
	*length = args.length;
	*phys = args.out_phys;
	return 0;
}

static bool noiommu_mode_enabled(void)
{
	int fd = open("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", O_RDONLY);
	char value = 'N';

	if (fd >= 0 && read(fd, &value, 1) != 1)
		value = 'N';
	close(fd);
	return value == 'Y';
}

FIXTURE(noiommu) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
};

FIXTURE_SETUP(noiommu)
{
	self->iommu = iommu_init(MODE_IOMMUFD);
	self->device = vfio_pci_device_init(bdf, self->iommu);
}

FIXTURE_TEARDOWN(noiommu)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

TEST_F(noiommu, info)
{
	ASSERT_NE(0, self->device->info.num_regions);
}

TEST_F(noiommu, mapped)
{
	struct dma_region region = { .iova = iova, .size = SZ_4K };
	u64 length = SZ_4K, phys = 0;

	region.vaddr = mmap(NULL, SZ_4K, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, region.vaddr);
	iommu_map(self->iommu, &region);
	TH_LOG("mapped at %#llx", (unsigned long long)iova);
	ASSERT_EQ(0, get_pa(self->iommu, iova, &length, &phys));
	ASSERT_NE(0, phys);
	ASSERT_EQ(SZ_4K, length);
	iommu_unmap(self->iommu, &region);
}

TEST_F(noiommu, unmapped)
{
	u64 length = SZ_4K, phys;

	ASSERT_NE(0, get_pa(self->iommu, iova, &length, &phys));
}

int main(int argc, char *argv[])
{
	bdf = vfio_selftests_get_bdf(&argc, argv);
	if (!noiommu_mode_enabled()) {
		ksft_print_msg("no-IOMMU mode is not enabled\n");
		return KSFT_SKIP;
	}
	return test_harness_run(argc, argv);
}
