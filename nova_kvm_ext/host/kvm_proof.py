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

"""Which errors prove that no guest runs under KVM, and which do not.

Pure. An error that is not in the table proves nothing: libvirt, or the host,
may be busy, out of memory or about to be restarted.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Proof:
    """One row.

    :ivar name: for the documentation
    :ivar pattern: what libvirt's or QEMU's text contains
    :ivar why: why it proves that no guest runs under KVM here now
    :ivar source: who says it
    """

    name: str
    pattern: str
    why: str
    source: str


# What passes by itself, whatever else the text has: ENOMEM, EAGAIN, EBUSY,
# EMFILE, ENFILE, EINTR, ENOSPC in the C library's words.
_PASSES = re.compile(
    r'Cannot allocate memory|Resource temporarily unavailable'
    r'|Device or resource busy|Too many open files|Interrupted system call'
    r'|No space left on device|[Tt]imed out|state change lock', re.DOTALL)

TABLE: tuple[Proof, ...] = (
    Proof('not offered',
          r"does not support virt type 'kvm'"
          r"|the accel 'kvm' is not supported"
          r'|could not get preferred machine for \S+ type=kvm'
          r'|could not find capabilities for .*domaintype=kvm',
          'libvirt refuses every guest of the type kvm',
          'libvirt, src/qemu/qemu_capabilities.c (virQEMUCapsIsValid, '
          'virQEMUCapsCacheLookupDefault), src/conf/capabilities.c'),
    Proof('device',
          r'Could not access KVM kernel module: (Permission denied'
          r'|No such (file|device)|Operation not permitted)',
          'QEMU itself could not open /dev/kvm',
          'QEMU, accel/kvm/kvm-all.c (kvm_init)'),
    Proof('no KVM behind it',
          r'kvm version too (old|new)|kvm version not supported'
          r'|failed to initialize kvm: (Inappropriate ioctl'
          r'|Permission denied|Operation not permitted'
          r'|No such (file|device)|Operation not supported|Not supported)',
          'what QEMU opened is not KVM, or KVM makes no guest',
          'QEMU, accel/kvm/kvm-all.c (kvm_init); kvm/api.rst of Linux, '
          'KVM_GET_API_VERSION, KVM_CREATE_VM'),
    Proof('built without',
          r'-accel kvm: invalid accelerator kvm'
          r'|invalid accelerator kvm',
          'QEMU was built without KVM',
          'QEMU, accel/accel-system.c'),
    Proof('register',
          r'failed to set MSR|kvm_buf_set_msrs',
          'KVM refuses a register of the CPU that every guest has, and QEMU '
          'aborts',
          'QEMU, target/i386/kvm/kvm.c (kvm_buf_set_msrs)'),
)


def find(text: str) -> Proof | None:
    """The row that an error's text is proof by; None for no proof.

    :param text: of a libvirt error, QEMU's last words in it
    """
    if _PASSES.search(text):
        return None
    return next((row for row in TABLE
                 if re.search(row.pattern, text, re.DOTALL)), None)
