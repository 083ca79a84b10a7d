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

"""Disks in Ceph.

Two speak of them: QEMU, in libvirt's errors, and Ceph's library, in Nova's.
"""

from nova_kvm_ext.known_errors.row import DIED
from nova_kvm_ext.known_errors.row import HOST_CHECK
from nova_kvm_ext.known_errors.row import KnownError

_OLD = 'libvirt 9.0, Ceph 16.2'
_SEEN = 'libvirt 9.0 and 11.3, Ceph 16.2 and 18.2'
_BLOCKDEV = (
    '2026-11-27T03:02:34.950048Z qemu-system-x86_64: -blockdev {"driver":'
    '"rbd","pool":"vms","image":"disk","server":[{"host":"127.0.0.77",'
    '"port":"7789"}],"user":"nova","auth-client-required":["cephx","none"],'
    '"key-secret":"libvirt-1-storage-auth-secret0","node-name":'
    '"libvirt-1-storage","cache":{"direct":false,"no-flush":false},'
    '"auto-read-only":true,"discard":"unmap"}: ')
# libvirt 11.3 and QEMU 10.0.
_NEWER = (
    '2026-11-27T10:24:37.418324Z qemu-system-x86_64: -blockdev {"driver":'
    '"rbd","pool":"vms","image":"disk","server":[{"host":"198.51.100.1",'
    '"port":"6789"}],"user":"nova","auth-client-required":["cephx","none"],'
    '"key-secret":"libvirt-1-storage-auth-secret0","node-name":'
    '"libvirt-1-storage","read-only":false}: ')

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'ceph-no-answer',
        r'error connecting: Connection timed out'
        r'|RADOS timed out \(error connecting to the cluster\)',
        'No monitor of Ceph accepted this client within five minutes. None '
        'can be reached, or the key or the user is wrong, which QEMU does not '
        'always report.',
        'See that the monitors can be reached from this host. ' + HOST_CHECK,
        _OLD,
        (DIED + _BLOCKDEV + 'error connecting: Connection timed out',
         '[errno 110] RADOS timed out (error connecting to the cluster)')),
    KnownError(
        'ceph-key',
        r'error connecting: (Permission denied|Invalid argument)'
        r'|RADOS (permission denied|invalid argument) '
        r'\(error connecting to the cluster\)',
        'Ceph refuses the key: it is the key of another user or no key at '
        'all, there is no keyring of that user, or Ceph has no such user.',
        'Compare the secret in libvirt (virsh secret-get-value) and the '
        'keyring of this host with ceph auth get; see [libvirt] rbd_user. ' +
        HOST_CHECK,
        _SEEN,
        (DIED + _BLOCKDEV + 'error connecting: Permission denied',
         DIED + _NEWER + 'error connecting: Permission denied',
         DIED + _BLOCKDEV + 'error connecting: Invalid argument',
         '[errno 13] RADOS permission denied (error connecting to the '
         'cluster)',
         '[errno 22] RADOS invalid argument (error connecting to the '
         'cluster)')),
    KnownError(
        'ceph-configuration',
        r'RADOS object not found '
        r'\(error (calling conf_read_file|connecting to the cluster)\)',
        'Ceph\'s library finds no configuration, or no key of its user.',
        'Copy ceph.conf and the keyring to this host, readable for the user '
        'of nova-compute; see [libvirt] images_rbd_ceph_conf and rbd_user. ' +
        HOST_CHECK,
        _SEEN,
        ('[errno 2] RADOS object not found (error calling conf_read_file)',
         '[errno 2] RADOS object not found (error connecting to the '
         'cluster)')),
    KnownError(
        'ceph-bindings',
        r'\Arbd python libraries not found\Z',
        'The Python of nova-compute has no modules rados and rbd.',
        'Install python3-rados and python3-rbd; a virtual environment sees '
        'them only if it was made with --system-site-packages. Then restart '
        'nova-compute. ' + HOST_CHECK,
        'source (nova/storage/rbd_utils.py of Nova 34)',
        ('rbd python libraries not found',)),
    KnownError(
        'ceph-pool',
        r"error opening pool \S+: No such file or directory"
        r"|RADOS object not found \(error opening pool '\S*'\)",
        'Ceph has no pool of that name.',
        'Correct [libvirt] images_rbd_pool, or rbd_pool of Cinder (ceph osd '
        'pool ls). ' + HOST_CHECK,
        _SEEN,
        (DIED + _BLOCKDEV + 'error opening pool nopool: No such file or '
         'directory',
         DIED + _NEWER + 'error opening pool nopool: No such file or '
         'directory',
         "[errno 2] RADOS object not found (error opening pool 'nopool')")),
    KnownError(
        'ceph-permission',
        r'error reading header from \S+: Operation not permitted'
        r'|RBD permission error \(',
        'Ceph does not give this user access to that pool.',
        'Give the user the pool: ceph auth caps with "profile rbd '
        'pool=...", and in the same command all that the user may do '
        'already (ceph auth get). ' + HOST_CHECK,
        _SEEN,
        (DIED + _BLOCKDEV + 'error reading header from disk: Operation not '
         'permitted',
         DIED + '2026-11-27T10:25:44.473+0000 7f6fc3fff6c0 -1 librbd::image::'
         'OpenRequest: failed to stat v2 image header: (1) Operation not '
         'permitted\n' + _NEWER + 'error reading header from disk: Operation '
         'not permitted',
         '[errno 1] RBD permission error (error listing images)')),
    KnownError(
        'ceph-image-gone',
        r'error reading header from \S+: No such file or directory'
        r'|RBD image not found \(',
        'The disk is not in Ceph any more, or it is in another pool.',
        'Look with rbd ls and rbd trash ls. An image in the trash comes back '
        'with rbd trash restore.',
        _SEEN,
        (DIED + _BLOCKDEV + 'error reading header from gone_disk: No such '
         'file or directory',
         DIED + _NEWER + 'error reading header from gone: No such file or '
         'directory',
         "[errno 2] RBD image not found (error opening image b'gone' at "
         'snapshot None)')),
    KnownError(
        'ceph-blocklisted',
        r'Cannot send after transport endpoint shutdown'
        r'|RBD connection was shutdown \(',
        'Ceph has put this client on its blocklist, and lets it no longer '
        'read and write: another client took over its lock, or an operator '
        'fenced the host.',
        'See ceph osd blocklist ls. If the host is well and nobody fenced it '
        'on purpose, ceph osd blocklist rm ADDRESS, and restart the guest.',
        _SEEN,
        (DIED + _BLOCKDEV + 'error reading header from disk: Cannot send '
         'after transport endpoint shutdown',
         "internal error: unable to execute QEMU command 'block_resize': "
         'Failed to resize file: Cannot send after transport endpoint '
         'shutdown',
         "[errno 108] RBD connection was shutdown (error creating snapshot "
         "b'zz' from b'disk')",
         "[errno 108] RBD connection was shutdown (error opening image "
         "b'two' at snapshot None)")),
    KnownError(
        'ceph-full',
        r'RBD (insufficient space available|disk quota exceeded) \('
        r'|RADOS no space \(',
        'The pool, or all of Ceph, is full, or the pool has reached its '
        'quota. Most often Ceph reports no error then: guests that write, and '
        'snapshots, wait until there is space.',
        'Add space or raise the quota (ceph df, ceph osd pool get-quota). '
        'What waits goes on then. ' + HOST_CHECK,
        'source (src/pybind/rbd/rbd.pyx and src/pybind/rados/rados.pyx of '
        'Ceph 18.2)',
        ('[errno 28] RBD insufficient space available (error creating image)',
         '[errno 122] RBD disk quota exceeded (error creating image)',
         "[errno 28] RADOS no space (error reading b'disk')")),
    KnownError(
        'secret-without-value',
        r"Secret not found: secret '\S*' does not have a value",
        'The secret in libvirt that opens the storage has no value. An '
        'ephemeral one loses it when libvirt restarts.',
        'Set it (virsh secret-set-value) to the key of Ceph\'s user (ceph '
        'auth get-key).',
        'libvirt 9.0 and 11.3',
        ("Secret not found: secret 'd9cd7487-3099-4d65-a423-a1ebe4539bef' "
         'does not have a value',)),
)
