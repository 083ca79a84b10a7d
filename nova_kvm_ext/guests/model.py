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

"""A running guest now, and what it would get today: frozen data.

Pure: :mod:`nova_kvm_ext.guests.reader` reads the facts,
:mod:`nova_kvm_ext.guests.verdicts` judges them. None is "not known".
"""

from collections.abc import Mapping
import dataclasses
import types

from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import usable
from nova_kvm_ext.host import model
from nova_kvm_ext.settings import Settings
from nova_kvm_ext.vhost import proof

STATES = types.MappingProxyType({
    0: 'no state', 1: 'running', 2: 'blocked', 3: 'paused',
    4: 'shutting down', 5: 'shut off', 6: 'crashed', 7: 'suspended'})
"""libvirt's virDomainState, which ``state.state`` of the statistics has.

https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainState
"""

BROKEN = frozenset({'io_error', 'watchdog', 'crashed', 'postcopy_failed',
                    'api_error'})
"""Reasons of :class:`Paused` that nobody asked for, after which a guest stays
paused."""


@dataclasses.dataclass(frozen=True)
class Paused:
    """Why a guest is paused.

    :ivar reason: name of a :class:`reasons.Reason`, in small letters
    :ivar words: the same for people, after "paused"
    :ivar short: the cause and the disks of an I/O error, for a table; '' where
        they are not known
    """

    reason: str
    words: str
    short: str = ''

    @property
    def broken(self) -> bool:
        """Whether nobody asked for it."""
        return self.reason in BROKEN


@dataclasses.dataclass(frozen=True)
class Process:
    """The QEMU of a guest, as the kernel shows it.

    :ivar pid: of the process; None where none is seen
    :ivar state: letter of /proc/PID/stat (proc(5)); None where not seen
    :ivar stuck: whether it was in uninterruptible sleep at two looks, and
        did not run between them
    :ivar replaced: whether the file that it runs is not there any more, or
        is another one today; None where only root may look
    :ivar why: what ``replaced`` comes from
    """

    pid: int | None = None
    state: str | None = None
    stuck: bool = False
    replaced: bool | None = None
    why: str = ''


@dataclasses.dataclass(frozen=True)
class Control:
    """Whether libvirt can command a guest's QEMU.

    https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainGetControlInfo

    :ivar state: 0 ready, 1 a job runs, 2 waits for QEMU's answer, 3 broken
    :ivar seconds: how long it has been so; 0 where ready
    """

    state: int = 0
    seconds: float = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A guest that is recorded as frozen.

    :ivar since: when, in seconds since 1970
    :ivar text: when and why, as it was written
    """

    since: float
    text: str


@dataclasses.dataclass(frozen=True)
class Guest:
    """A running guest.

    :ivar state: a key of :data:`STATES`
    :ivar paused: why it is paused; None where it is not
    :ivar domain_type: ``kvm`` or ``qemu``
    :ivar qemu: version of the QEMU that it was started with, as 7.2.22
    :ivar package: the distribution's name of that version, or ''
    :ivar cpu: as the live XML has it
    :ivar configured: as the XML that it was started from has it
    :ivar specs: extra specs of its flavor, as Nova keeps them in the XML;
        None where Nova does not (releases before 32), or it is no guest of
        Nova's
    :ivar of_nova: whether Nova's description is in the XML
    :ivar channel: whether something in the guest has the agent channel open;
        None where it has no channel
    :ivar vhost: what the kernel shows of vhost-net
    :ivar odd: why its XML could not be read, or ''
    """

    uuid: str
    name: str
    state: int | None = None
    paused: Paused | None = None
    domain_type: str = ''
    arch: str = ''
    machine: str = ''
    emulator: str = ''
    qemu: str | None = None
    package: str = ''
    cpu: definition.CPU | None = None
    configured: definition.CPU | None = None
    specs: Mapping[str, str] | None = None
    of_nova: bool = False
    channel: bool | None = None
    nics: tuple[proof.Nic, ...] = ()
    vhost: model.VhostFacts = model.VhostFacts()
    process: Process = Process()
    control: Control | None = None
    frozen: Frozen | None = None
    odd: str = ''


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine type of today's QEMU.

    :ivar canonical: the versioned type that an alias stands for
    :ivar deprecated: None where libvirt does not tell
    """

    name: str
    canonical: str | None = None
    deprecated: bool | None = None


@dataclasses.dataclass(frozen=True)
class CPUs:
    """What CPUs guests of one virt type get today.

    :ivar choice: the host-wide choice; None where it is refused
    :ivar problem: why it is
    """

    host: usable.Host
    choice: choose.CPUChoice | None = None
    problem: str = ''


@dataclasses.dataclass(frozen=True)
class Today:
    """What a guest would get if it were started now.

    :ivar qemu: version of libvirt's QEMU for this host's architecture
    :ivar emulators: path of that QEMU by architecture
    :ivar machines: by architecture and name; empty where not told
    :ivar settings: nova.conf's; None where they are refused
    :ivar cpus: by virt type
    """

    qemu: str | None = None
    arch: str = ''
    emulators: Mapping[str, str] = dataclasses.field(default_factory=dict)
    machines: Mapping[str, Mapping[str, Machine]] = dataclasses.field(
        default_factory=dict)
    settings: Settings | None = None
    cpus: Mapping[str, CPUs] = dataclasses.field(default_factory=dict)
