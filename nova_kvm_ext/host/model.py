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

"""Facts about a host as frozen data.

Pure: says what a fact looks like, never where it comes from.
:mod:`nova_kvm_ext.host.facts` reads them.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DeviceFacts:
    """A character device such as /dev/kvm.

    :ivar path: its path
    :ivar present: whether there is a character device of that name
    :ivar mode: permission bits, 0 if not present
    :ivar owner: uid, or -1
    :ivar group: gid, or -1
    :ivar open_error: errno name (``EACCES``) of this process's attempt to
        open it for reading and writing; None where it opened or is not there
    """

    path: str
    present: bool
    mode: int = 0
    owner: int = -1
    group: int = -1
    open_error: str | None = None


@dataclasses.dataclass(frozen=True)
class VhostFacts:
    """What the kernel shows of a running guest's vhost-net.

    :ivar pid: of its QEMU; None where no such process is seen
    :ivar descriptors: how many descriptors of /dev/vhost-net it has open, one
        for each queue; None where this process may not look
    :ivar threads: how many threads of the kernel serve it, one for each
        descriptor; None where kernel threads are not seen (in a PID
        namespace)
    """

    pid: int | None = None
    descriptors: int | None = None
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class InstallFacts:
    """Where Nova and this package are installed.

    :ivar nova_directories: directories of the ``nova.virt`` package
    :ivar door: path of nova/virt/kvm_ext as this installation has it, or
        None where it has none
    :ivar error: why ``nova.virt.kvm_ext`` cannot be found, or None
    """

    nova_directories: tuple[str, ...]
    door: str | None
    error: str | None
