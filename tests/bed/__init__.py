"""Several machines on this one: each a real piccolod in namespaces of its own, joined by a bridge, and faults as functions.

with Cluster(3) as cluster:
    cluster.start()
    n1, n2, n3 = cluster.machines
    faults.power_off(n1)

A machine is a set of namespaces (processes, mounts, network, host name, IPC, cgroups) held by one first process. Its state
lies on a disk of its own, an ext4 image behind a loop device. Killing the first process takes every process and mount of
the machine at once, so that power loss is exact. All that a bed makes carries its tag, and `remains` finds it again.

Not to be had on one host: a wall clock of one's own but in the C library (`wallclock`: time namespaces shift CLOCK_BOOTTIME and
CLOCK_MONOTONIC alone), and a kernel of one's own: descriptors, memory and page cache are shared.
"""
