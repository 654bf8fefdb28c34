#!/bin/sh
# First process of a machine, started in new namespaces. Usage: init.sh NAME BOOT_ID_FILE IMAGE STATE
# Sets up the mounts of the machine, says "up", and holds everything until its standard input ends or somebody kills it:
# the kernel then ends every process of the machine, and its mounts go with them.
set -eu
name=$1 boot_id=$2 image=$3 state=$4

mount -t proc proc /proc
mount --bind "$boot_id" /proc/sys/kernel/random/boot_id
hostname "$name"

# What others mounted below /run (network namespaces of other machines) must not be kept alive from here. What lies hidden
# below another mount cannot be reached, and goes with it.
awk '$2 ~ "^/run/" { print $2 }' /proc/self/mounts | sort -r | while read -r point; do umount -l "$point" || true; done
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs shm /dev/shm
mkdir /run/netns /run/containers /run/lock

# The machine's own cgroups are the root of what is seen here.
awk '$3 ~ /^cgroup2?$/ { print $2, $3, $4 }' /proc/self/mounts | while read -r point kind options; do
    options=$(echo "$options" | tr , '\n' | grep -Evx 'r[wo]|relatime|nosuid|nodev|noexec|xattr|release_agent=.*' | paste -sd, -)
    umount -l "$point" && mount -t "$kind" ${options:+-o "$options"} "$kind" "$point"
done

mount -o loop,noinit_itable "$image" "$state"
# Orphans end without anybody who asks how: ignored, their death leaves no zombie (wait(2)), and wakes nobody.
trap '' CHLD
echo up
exec cat >/dev/null
