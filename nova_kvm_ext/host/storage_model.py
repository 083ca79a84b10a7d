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

"""What is known of the storage of disks: Ceph and libvirt's secrets.

A part of :mod:`nova_kvm_ext.host.model`, with its rules.
"""

from collections.abc import Mapping
import dataclasses


@dataclasses.dataclass(frozen=True)
class CephFacts:
    """What the Python of nova-compute found of Ceph, as nova-compute's user.

    :ivar asked: whether it was asked: not where nova.conf has no use for it
    :ivar python: the Python that was asked
    :ivar unknown: why it gave no answer, or ''
    :ivar elsewhere: whether nova-compute has a file system of its own
    :ivar modules: by name, why Python does not import it; '' where it does
    :ivar programs: by name, where it is; None where it is not
    :ivar step: the last that was tried: ``conf`` (reads ceph.conf),
        ``connect``, ``pool`` (opens it), ``read`` (reads an object of it),
        ``write`` (changes an object that there is not), ``class`` (asks OSDs
        for RBD), ``data`` (writes to the data pool), ``done``; '' for none
    :ivar error: why that step failed, in words of Ceph's library, or ''
    :ivar errno: its number; None where there is none, or no answer came
    :ivar signal: the one that ended Python in that step; None for none
    :ivar monitors: False where ceph.conf certainly has no mon_host
    :ivar cephx: False where auth_client_required certainly does not name it
    :ivar full: whether Ceph says that the pool is full
    :ivar data_pool: rbd_default_data_pool; '' where that is the same pool
    :ivar key_error: of a connection with libvirt's secret; None: not tried
    :ivar key_errno: its number
    """

    asked: bool = False
    python: str = ''
    unknown: str = ''
    elsewhere: bool = False
    modules: Mapping[str, str] = dataclasses.field(default_factory=dict)
    programs: Mapping[str, str | None] = dataclasses.field(
        default_factory=dict)
    step: str = ''
    error: str = ''
    errno: int | None = None
    signal: int | None = None
    monitors: bool = True
    cephx: bool = True
    full: bool = False
    data_pool: str = ''
    key_error: str | None = None
    key_errno: int | None = None


@dataclasses.dataclass(frozen=True)
class SecretFacts:
    """A secret of libvirt.

    :ivar there: whether libvirt has it; None where that is not known
    :ivar has_value: whether it has a value; None where that is not known
    :ivar error: why something is not known, in libvirt's words, or ''
    :ivar malformed: whether libvirt says that its UUID is none
    :ivar usage: what it is for, in libvirt's word, where libvirt does not
        take it for Ceph; '' where it does, or that is not known
    """

    there: bool | None = None
    has_value: bool | None = None
    error: str = ''
    malformed: bool = False
    usage: str = ''


@dataclasses.dataclass(frozen=True)
class StorageFacts:
    """Ceph, as far as guests here need it.

    :ivar driver: whether QEMU has the block driver rbd; None where that is
        not known
    :ivar driver_error: what QEMU said instead, or why it was not asked
    """

    ceph: CephFacts = CephFacts()
    secret: SecretFacts = SecretFacts()
    driver: bool | None = None
    driver_error: str = ''
