#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Make a booted root reachable over SSH: mounts, network, keys, server.  Run as root by the root's own init; runs
# until the machine is shut down.  The keys come from QEMU's firmware configuration (-fw_cfg
# name=opt/vfio-harness/<x>,file=...), readable through CONFIG_FW_CFG_SYSFS.  POSIX sh.
set -u
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

run=/run/vfio-harness
fw_cfg=/sys/firmware/qemu_fw_cfg/by_name/opt/vfio-harness

say() {
	echo "vfio-harness: $*"
	echo "<5>vfio-harness: $*" >/dev/kmsg 2>/dev/null
}

# die WHAT: report a fatal error; the host reads the message on the console and stops waiting.
die() {
	say "init failed: $*"
	sync
	sleep 1
	exit 1
}

mounted() {
	while read -r _ point _; do
		[ "$point" = "$1" ] && return 0
	done </proc/mounts
	return 1
}

# mount_once TYPE POINT [OPTIONS]
mount_once() {
	mounted "$2" && return 0
	[ -d "$2" ] || mkdir -p "$2" || return 1
	mount -t "$1" ${3:+-o "$3"} "$1" "$2"
}

[ -r /proc/mounts ] || mount -t proc proc /proc || die "no /proc"
mount_once sysfs /sys || die "no /sys"
mount_once devtmpfs /dev || die "no /dev"
mount_once devpts /dev/pts "mode=620,ptmxmode=666" || die "no /dev/pts"
mount_once tmpfs /run "mode=755" || die "no /run"
mount_once tmpfs /tmp "mode=1777" || die "no /tmp"
mount_once tmpfs /dev/shm "mode=1777" || say "no /dev/shm"
mount_once debugfs /sys/kernel/debug || say "no debugfs"

# What a kernel that the harness did not configure may have as modules.
if [ -d "/lib/modules/$(uname -r)" ]; then
	modprobe -a -q virtio_net virtio_console qemu_fw_cfg vfio_iommu_type1 vfio-pci 2>/dev/null
fi

# The links that udev would create for virtio-serial ports.
for port in /sys/class/virtio-ports/*; do
	[ -r "$port/name" ] || continue
	read -r name <"$port/name" || continue
	[ -n "$name" ] || continue
	mkdir -p /dev/virtio-ports
	[ -e "/dev/virtio-ports/$name" ] || ln -s "../${port##*/}" "/dev/virtio-ports/$name"
done

# QEMU's user network: no DHCP, its addresses never change (docs/system/devices/net.rst).
ip link set lo up || die "no loopback"
address=10.0.2.15/24
for device in /sys/class/net/*; do
	interface=${device##*/}
	driver=$(readlink "$device/device/driver" 2>/dev/null) || continue
	[ "${driver##*/}" = virtio_net ] || continue
	ip link set "$interface" up || die "cannot bring up $interface"
	ip address replace "$address" dev "$interface" || die "cannot set the address of $interface"
	ip route replace default via 10.0.2.2 2>/dev/null
	say "network on $interface"
	break
done

umask 077
mkdir -p "$run" || die "no $run"
for key in authorized_keys host_key dropbear_key; do
	[ -r "$fw_cfg/$key/raw" ] || die "QEMU passed no $key (opt/vfio-harness/$key)"
	cat "$fw_cfg/$key/raw" >"$run/$key" || die "$key is unreadable"
done
chmod 755 "$run"

serve_dropbear() {
	# -D (authorized_keys directory) came with dropbear 2022.83+; the file must be named authorized_keys.
	if dropbear -h 2>&1 | grep -q 'authorized_keys'; then
		say "ssh: dropbear"
		umask 022
		exec dropbear -F -E -s -r "$run/dropbear_key" -D "$run" -P "$run/ssh.pid" -p 22
	fi
	# Older ones look in ~root/.ssh only.
	key_in_home || return 1
	say "ssh: dropbear"
	umask 022
	exec dropbear -F -E -s -r "$run/dropbear_key" -P "$run/ssh.pid" -p 22
}

# key_in_home: install our key as the only one in root's .ssh, without writing to the root, which may be the host's:
# a tmpfs over an existing .ssh, or else a passwd of our own with a home of root under /run.
key_in_home() {
	home=$(awk -F: '$1 == "root" { print $6 }' /etc/passwd)
	if [ -n "$home" ] && [ -d "$home/.ssh" ]; then
		mount -t tmpfs -o mode=700 tmpfs "$home/.ssh" || return 1
	else
		home=$run/home
		mkdir -p "$home/.ssh" || return 1
		awk -F: -v OFS=: -v home="$home" '$1 == "root" { $6 = home } { print }' /etc/passwd >"$run/passwd" || return 1
		chmod 644 "$run/passwd"
		mount --bind "$run/passwd" /etc/passwd || return 1
	fi
	cp "$run/authorized_keys" "$home/.ssh/authorized_keys"
}

serve_openssh() {
	mkdir -p /run/sshd
	chmod 755 /run/sshd
	chmod 600 "$run/host_key" "$run/authorized_keys"
	cat >"$run/sshd_config" <<CONFIG
Port 22
HostKey $run/host_key
AuthorizedKeysFile $run/authorized_keys
PidFile $run/ssh.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
MaxSessions 64
MaxStartups 64
Subsystem sftp internal-sftp
CONFIG
	sshd=$(command -v sshd) || return 1
	say "ssh: openssh"
	umask 022
	exec "$sshd" -D -e -f "$run/sshd_config"
}

# The agent loads while the SSH server starts; its port is on the loopback only.
(cd "$run" && exec python3 -m guest.resident) &

if command -v dropbear >/dev/null 2>&1; then
	serve_dropbear
fi
if command -v sshd >/dev/null 2>&1; then
	serve_openssh
fi
die "no SSH server: neither dropbear nor sshd starts in this root"
