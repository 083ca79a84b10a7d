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

"""The table of known libvirt errors: their meaning and their remedy.

Only a table. :func:`nova_kvm_ext.errors.explain` finds a text in it. Pure.

A row is for one cause. Its pattern matches the text of that cause and of no
other row, so the order of the rows has no meaning; a text that no row matches
is not explained. libvirt's texts change from release to release and quote
QEMU's. So a pattern matches the part that has the meaning, without paths,
names and numbers. Remedies name no path of this host either; ``nova-kvm-ext
host check`` reads the host.
"""

from nova_kvm_ext.known_errors import ceph
from nova_kvm_ext.known_errors import connection
from nova_kvm_ext.known_errors import cpu
from nova_kvm_ext.known_errors import devices
from nova_kvm_ext.known_errors import emulator
from nova_kvm_ext.known_errors import host
from nova_kvm_ext.known_errors import kvm
from nova_kvm_ext.known_errors import memory
from nova_kvm_ext.known_errors import migration
from nova_kvm_ext.known_errors import network
from nova_kvm_ext.known_errors.row import KnownError
from nova_kvm_ext.known_errors.row import without_names
from nova_kvm_ext.known_errors import storage

__all__ = ('KnownError', 'TABLE', 'without_names')

TABLE: tuple[KnownError, ...] = (
    *kvm.ROWS, *emulator.ROWS, *cpu.ROWS, *memory.ROWS, *connection.ROWS,
    *host.ROWS, *storage.ROWS, *ceph.ROWS, *network.ROWS, *devices.ROWS,
    *migration.ROWS)
