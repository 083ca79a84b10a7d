#!/bin/busybox sh
#
#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

# /init of the test guest: load drivers, print the report that report.py
# reads, then serve the guest agent and wait. Shell built-ins are used where
# they will do: under TCG every process costs milliseconds.

# Every leaf that libvirt's cpu_map names a feature in, as ranges because one
# read of the cpuid device can cover many leaves: first leaf, sub-leaf, count.
# Those of libvirt 12.8: AMX is in leaf 0x1e, AVX10 in 0x24, APX in 0x29, what
# CPUs of VIA and Zhaoxin have in 0xc0000001.
CPUID='0x0 0 0x2a
0x7 1 0x1e
0x7 2 0x1
0x80000000 0 0x23
0xc0000000 0 0x2'

AGENT_CHANNEL=org.qemu.guest_agent.0

lines=0
say() {
    echo "@nke $1=$2"
    lines=$((lines + 1))
}

# Loads what testguest.py put in, in its order. A driver without its device
# is no fault.
load_modules() {
    local module
    while read -r module; do
        insmod "/lib/modules/$module"
    done < /lib/modules/order 2> /dev/null
}

report_cpu() {
    local key value cpus=0
    while IFS=: read -r key value; do
        value=${value# }
        case $key in
            processor*) cpus=$((cpus + 1)) ;;
            # Further CPUs say the same.
            vendor_id*) [ $cpus = 1 ] && say cpu.vendor "$value" ;;
            'model name'*) [ $cpus = 1 ] && say cpu.model_name "$value" ;;
            flags*) [ $cpus = 1 ] && say cpu.flags "$value" ;;
        esac
    done < /proc/cpuinfo
    say cpus $cpus
}

report_memory() {
    local key value unit
    while read -r key value unit; do
        [ "$key" = MemTotal: ] && say memory_kib "$value" && break
    done < /proc/meminfo
}

report_nics() {
    local nic mac n=0
    for nic in /sys/class/net/*; do
        [ -e "$nic/device" ] || continue
        read -r mac < "$nic/address"
        say nic.$n.name "${nic##*/}"
        say nic.$n.mac "$mac"
        cd -P "$nic/device/driver" && say nic.$n.driver "${PWD##*/}"
        # IPv6 looks for neighbours then, which is traffic to be seen.
        ip link set "${nic##*/}" up 2> /dev/null
        n=$((n + 1))
    done
    cd /
}

report_disks() {
    local disk sectors
    for disk in /sys/block/*; do
        [ -e "$disk/device" ] || continue
        read -r sectors < "$disk/size"
        say "disk.${disk##*/}.bytes" $((sectors * 512))
    done
}

# What the kernel does about the flaws of this CPU.
report_vulnerabilities() {
    local file text
    for file in /sys/devices/system/cpu/vulnerabilities/*; do
        [ -e "$file" ] || continue
        read -r text < "$file"
        say "vulnerability.${file##*/}" "$text"
    done
}

# In the cpuid device the low half of the position is the leaf, the high half
# the sub-leaf, and each 16 bytes read move on by one leaf. Leaves above the
# highest one of their class hold no facts (some CPUs repeat another leaf).
report_cpuid() {
    local first sub count leaf top=0 eax ebx ecx edx
    echo "$CPUID" | while read -r first sub count; do
        echo "$first $sub"
        dd if=/dev/cpu/0/cpuid bs=16 iflag=skip_bytes count=$((count)) \
            skip=$((sub << 32 | first)) 2> /dev/null |
            hexdump -v -e '4/4 "%08x " "\n"'
    done > /tmp/cpuid
    while read -r eax ebx ecx edx; do
        if [ -z "$ecx" ]; then
            leaf=$((eax)) sub=$ebx
            continue
        fi
        [ $((leaf & 0x3fffffff)) = 0 ] && top=$((0x$eax))
        [ $leaf -le $top ] &&
            say cpuid "$(printf %x $leaf):$sub:$eax:$ebx:$ecx:$edx"
        leaf=$((leaf + 1))
    done < /tmp/cpuid
}

# The boot disk's second partition, whatever bus the disk is on.
mount_data() {
    local number
    for number in /sys/class/block/*/partition; do
        number=${number%/partition}
        [ "${number%2}" != "$number" ] &&
            mount -t ext4 "/dev/${number##*/}" /data && return
    done 2> /dev/null
}

# There is no udev here to name the port. The kernel hears the ports' names
# from QEMU some time after the driver has found the device.
find_agent_port() {
    local port name tries=0
    set -- /sys/bus/virtio/drivers/virtio_console/virtio*
    [ -e "$1" ] || return 1
    while [ $tries -lt 30 ]; do
        for port in /sys/class/virtio-ports/*; do
            name=
            [ -e "$port/name" ] && read -r name < "$port/name"
            if [ "$name" = $AGENT_CHANNEL ]; then
                mkdir -p /dev/virtio-ports
                ln -s "../${port##*/}" /dev/virtio-ports/$AGENT_CHANNEL
                return 0
            fi
        done
        tries=$((tries + 1))
        usleep 100000
    done
    return 1
}

serve_agent() {
    while :; do
        qemu-ga -m virtio-serial -p /dev/virtio-ports/$AGENT_CHANNEL \
            -t /run -f /run/qemu-ga.pid -F/etc/fsfreeze-hook
        # An agent that cannot run at all must not keep a CPU busy.
        sleep 2
    done > /dev/null 2>&1
}

mount -t devtmpfs none /dev
exec < /dev/console > /dev/console 2>&1
mount -t proc none /proc
mount -t sysfs none /sys
# Kernel messages would tear the report's lines apart.
dmesg -n 1
load_modules

say begin 1
lines=0
read -r kernel < /proc/sys/kernel/osrelease
say kernel "$kernel"
report_cpu
report_vulnerabilities
report_memory
report_nics
report_disks
report_cpuid
# A report is also right from a disk that cannot be written to.
mount_data
if [ ! -x /usr/sbin/qemu-ga ]; then
    say agent no-binary
elif find_agent_port; then
    serve_agent &
    say agent started
else
    say agent no-channel
fi
echo "@nke end lines=$lines"

# The power button, for a host that has no agent to ask.
acpid
# Waiting for the agent's loop also reaps what orphans there are; without an
# agent there is nothing to wait for.
wait
while :; do
    sleep 86400
done
