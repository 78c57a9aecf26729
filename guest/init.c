// SPDX-License-Identifier: GPL-2.0-only
/*
 * Process 1 of the `image` root: file systems, network, agent, SSH server, then reaping orphans.
 *
 * It is compiled because a shell script that does the same forks some fifteen times, which takes a quarter of a
 * second under emulation.  Arguments: NAME=DIRECTORY for each further disk, as in vdb=/run/vfio-harness/guest.
 * It prints the same messages as init.sh, which the host parses (harness/machine/vm.py).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUN "/run/vfio-harness"
#define FW_CFG "/sys/firmware/qemu_fw_cfg/by_name/opt/vfio-harness"

static void say(const char *format, ...)
{
	va_list words;

	va_start(words, format);
	printf("vfio-harness: ");
	vprintf(format, words);
	printf("\n");
	va_end(words);
	fflush(stdout);
}

/* Report a fatal error: the host reads the message and stops waiting; the exit panics the kernel. */
static void die(const char *what)
{
	say("init failed: %s: %s", what, strerror(errno));
	sleep(1);
	exit(1);
}

static void make_directory(const char *path, mode_t mode)
{
	char part[PATH_MAX];

	snprintf(part, sizeof(part), "%s", path);
	for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		mkdir(part, 0755);
		*slash = '/';
	}
	if (mkdir(path, mode) && errno != EEXIST)
		die(path);
}

static void mount_on(const char *type, const char *source, const char *point, unsigned long flags,
		     const char *options)
{
	make_directory(point, 0755);
	if (mount(source, point, type, flags, options) && errno != EBUSY)
		die(point);
}

/* Mount a tmpfs over the read-only root, so that all of it is writable and nothing is kept. */
static void make_root_writable(void)
{
	mount_on("tmpfs", "tmpfs", "/mnt", 0, "mode=755");
	make_directory("/mnt/upper", 0755);
	make_directory("/mnt/work", 0755);
	mount_on("overlay", "overlay", "/mnt/root", 0,
		 "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work");
	if (mount("/dev", "/mnt/root/dev", NULL, MS_MOVE, NULL))
		die("moving /dev");
	if (chdir("/mnt/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		die("changing the root");
}

static void mount_file_systems(void)
{
	mount_on("proc", "proc", "/proc", 0, NULL);
	mount_on("sysfs", "sysfs", "/sys", 0, NULL);
	mount_on("devpts", "devpts", "/dev/pts", 0, "mode=620,ptmxmode=666");
	mount_on("tmpfs", "tmpfs", "/dev/shm", 0, "mode=1777");
	mount_on("tmpfs", "tmpfs", "/run", 0, "mode=755");
	mount_on("tmpfs", "tmpfs", "/tmp", 0, "mode=1777");
	if (mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL))
		say("no debugfs");
}

static void mount_disk(char *argument)
{
	char device[PATH_MAX];
	char *point = strchr(argument, '=');

	if (!point) {
		errno = EINVAL;
		die(argument);
	}
	*point++ = '\0';
	snprintf(device, sizeof(device), "/dev/%s", argument);
	mount_on("erofs", device, point, MS_RDONLY, NULL);
}

static int has_port(void)
{
	DIR *ports = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	int found = 0;

	while (ports && (entry = readdir(ports)))
		found |= entry->d_name[0] != '.';
	if (ports)
		closedir(ports);
	return found;
}

/*
 * Load what a kernel that the harness did not configure may have as modules: the network, the port to the host, the
 * keys, and VFIO.  Our own variants have the former built in; of VFIO the agent loads what is still missing.
 */
static void load_modules(void)
{
	char *words[] = { "modprobe", "-a", "-q", "virtio_net", "virtio_console", "qemu_fw_cfg",
			  "vfio_iommu_type1", "vfio-pci", NULL };
	char path[PATH_MAX];
	struct utsname kernel;
	pid_t child;

	uname(&kernel);
	snprintf(path, sizeof(path), "/usr/lib/modules/%s", kernel.release);
	if (access(path, F_OK))
		return;
	child = fork();
	if (child == 0) {
		execvp(words[0], words);
		_exit(127);
	}
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	/* The ports come with messages from the host, one second at most after their driver. */
	for (int i = 0; i < 100 && !has_port(); i++)
		usleep(10000);
}

/* Call what() with the name of each entry of a directory. */
static void for_each(const char *directory, void (*what)(const char *name))
{
	DIR *entries = opendir(directory);
	struct dirent *entry;

	while (entries && (entry = readdir(entries)))
		if (entry->d_name[0] != '.')
			what(entry->d_name);
	if (entries)
		closedir(entries);
}

/* Create the link that udev would create for a virtio-serial port. */
static void name_port(const char *port)
{
	char path[PATH_MAX], name[128] = "", target[PATH_MAX];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", port);
	file = fopen(path, "re");
	if (!file)
		return;
	if (fscanf(file, "%127s", name) == 1) {
		make_directory("/dev/virtio-ports", 0755);
		snprintf(path, sizeof(path), "/dev/virtio-ports/%s", name);
		snprintf(target, sizeof(target), "../%s", port);
		if (symlink(target, path) && errno != EEXIST)
			say("no %s", path);
	}
	fclose(file);
}

static void bring_up(const char *interface, const char *address, const char *netmask)
{
	int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = { 0 };
	struct sockaddr_in *value = (struct sockaddr_in *)&request.ifr_addr;

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", interface);
	value->sin_family = AF_INET;
	inet_pton(AF_INET, address, &value->sin_addr);
	if (ioctl(control, SIOCSIFADDR, &request))
		die(interface);
	inet_pton(AF_INET, netmask, &value->sin_addr);
	if (ioctl(control, SIOCSIFNETMASK, &request))
		die(interface);
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(control, SIOCSIFFLAGS, &request))
		die(interface);
	close(control);
}

/* QEMU's user network needs no DHCP: its addresses never change (docs/system/devices/net.rst). */
static void bring_up_virtio(const char *interface)
{
	char path[PATH_MAX], driver[PATH_MAX] = "";

	snprintf(path, sizeof(path), "/sys/class/net/%s/device/driver", interface);
	if (readlink(path, driver, sizeof(driver) - 1) < 0)
		return;
	if (!strcmp(basename(driver), "virtio_net"))
		bring_up(interface, "10.0.2.15", "255.255.255.0");
}

static pid_t start(const char *directory, char *const words[])
{
	pid_t child = fork();

	if (child)
		return child;
	setsid();
	if (chdir(directory) == 0)
		execvp(words[0], words);
	say("init failed: %s: %s", words[0], strerror(errno));
	_exit(127);
}

int main(int count, char **arguments)
{
	char *agent[] = { "python3", "-m", "guest.resident", NULL };
	char *server[] = { "dropbear", "-F", "-E", "-s", "-r", FW_CFG "/dropbear_key/raw", "-p", "22", NULL };
	pid_t ssh, resident, ended;

	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	make_root_writable();
	mount_file_systems();
	for (int i = 1; i < count; i++)
		mount_disk(arguments[i]);
	load_modules();
	for_each("/sys/class/virtio-ports", name_port);
	bring_up("lo", "127.0.0.1", "255.0.0.0");
	for_each("/sys/class/net", bring_up_virtio);
	resident = start(RUN, agent);
	say("ssh: dropbear");
	ssh = start("/", server);
	while ((ended = wait(NULL)) > 0 || errno == EINTR) {
		if (ended == ssh)
			say("init failed: the SSH server ended");
		if (ended == resident)
			say("init failed: the agent ended");
	}
	for (;;)
		pause();
}
