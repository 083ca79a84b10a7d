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


"""Reads whether a guest's QEMU can do post-copy on this host.

QEMU asks the kernel for a userfaultfd at the destination, by the system call
or, since QEMU 8.0, by ``/dev/userfaultfd``. The only reliable test is to ask
as QEMU's user. Returns frozen data; makes no decision.
"""

import errno
import os
import subprocess
import sys

from nova_kvm_ext.host import kernel_facts
from nova_kvm_ext.host import model
from nova_kvm_ext.host import user_facts

DEVICE = '/dev/userfaultfd'

# __NR_userfaultfd of the kernel's asm/unistd.h.
_CALL = {'x86_64': 323, 'i686': 374, 'aarch64': 282, 'riscv64': 282,
         'armv7l': 388, 'ppc64le': 364, 's390x': 355}

# QEMU asks with these flags, without UFFD_USER_MODE_ONLY: KVM and vhost touch
# the guest's memory from within the kernel.
_ASK = """
import ctypes, os, sys
number, uid, gid, *groups = map(int, sys.argv[1:])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
call = ctypes.CDLL(None, use_errno=True).syscall
found = call(number, os.O_CLOEXEC | os.O_NONBLOCK)
print(0 if found >= 0 else ctypes.get_errno())
"""
_SECONDS = 10


def read(arch: str, user: model.UserFacts,
         root: str = '/') -> model.PostCopyFacts:
    """What the kernel lets QEMU's user have.

    Only root can become that user; else the system call is left out, and the
    device is judged by its permissions.
    """
    device = None
    if os.path.exists(os.path.join(root, DEVICE.lstrip('/'))):
        device = user_facts.read_use(DEVICE, user, root)
    return model.PostCopyFacts(
        True, _ask(arch, user), kernel_facts.read(
            '/proc/sys/vm/unprivileged_userfaultfd', root).strip(), device)


def _ask(arch: str, user: model.UserFacts) -> str | None:
    """errno's name, '' for success, None where nobody was asked."""
    if arch not in _CALL or user.uid is None or user.gid is None or (
            os.geteuid() != 0):
        return None
    try:
        answer = subprocess.run(
            [sys.executable, '-I', '-S', '-c', _ASK, str(_CALL[arch]),
             str(user.uid), str(user.gid), *map(str, user.groups)],
            capture_output=True, text=True, timeout=_SECONDS,
            stdin=subprocess.DEVNULL).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    if not answer.isdecimal():
        return None
    return errno.errorcode.get(int(answer), answer) if int(answer) else ''
