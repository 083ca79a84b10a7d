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

"""Known errors: disks in Ceph.

They come from QEMU, in libvirt's errors, and from Ceph's library, in Nova's.
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
        'No monitor of Ceph accepted this client within five minutes. The '
        'host cannot reach the monitors, or the key or the user is wrong, '
        'which QEMU does not always report.',
        'Check that this host can reach the monitors. ' + HOST_CHECK,
        _OLD,
        (DIED + _BLOCKDEV + 'error connecting: Connection timed out',
         '[errno 110] RADOS timed out (error connecting to the cluster)')),
    KnownError(
        'ceph-osds',
        r'RBD operation timeout \('
        r'|RADOS timed out \((?!error connecting )'
        r'|error reading header from [^\n]+: Connection timed out'
        r'|rbd: import failed: \(110\) Connection timed out',
        'An OSD or a monitor of Ceph did not answer within the time that '
        'ceph.conf gives it (rados_osd_op_timeout, rados_mon_op_timeout).',
        'Look with ceph -s and ceph osd tree for OSDs that are down or slow. '
        + HOST_CHECK,
        _OLD,
        ('[errno 110] RBD operation timeout (error creating image)',
         "[errno 110] RADOS timed out (Failed to stat 'x')",
         DIED + _BLOCKDEV + 'error reading header from base: Connection timed '
         'out',
         'librbd: Could not tell if imp already exists\n'
         'rbd: image creation failed\n\n'
         'Importing image: 0% complete...failed.\n'
         'rbd: import failed: (110) Connection timed out')),
    KnownError(
        'ceph-key',
        r'error connecting: (Permission denied|Invalid argument)'
        r'|RADOS (permission (denied|error)|I/O error) '
        r'\(error connecting to the cluster\)',
        'Ceph refuses the key: it is the key of another user or not a key, '
        'the user has no keyring on this host, Ceph has no such user, or the '
        'user has no capability for the monitors.',
        'Compare the secret in libvirt (virsh secret-get-value) and the '
        'keyring of this host with ceph auth get; see [libvirt] rbd_user. ' +
        HOST_CHECK,
        _SEEN,
        (DIED + _BLOCKDEV + 'error connecting: Permission denied',
         DIED + _NEWER + 'error connecting: Permission denied',
         DIED + _BLOCKDEV + 'error connecting: Invalid argument',
         '[errno 13] RADOS permission denied (error connecting to the '
         'cluster)',
         '[errno 5] RADOS I/O error (error connecting to the cluster)',
         '2026-11-27T13:45:31.785+0000 7fb4e179a6c0 -1 monclient(hunting): '
         'handle_auth_bad_method server allowed_methods [2] but i only '
         'support [2]\n[errno 13] RADOS permission denied (error connecting '
         'to the cluster)',
         # Of Ceph 18.2, where the keyring has no key of the user.
         '[errno 1] RADOS permission error (error connecting to the '
         'cluster)')),
    KnownError(
        'ceph-authentication',
        r'\[errno 95\] error connecting to the cluster',
        'Ceph and this host do not agree on how clients authenticate: '
        'auth_client_required of ceph.conf is not what Ceph requires.',
        'Remove auth_client_required from ceph.conf of this host, or set it '
        'to cephx. ' + HOST_CHECK,
        _OLD,
        ('[errno 95] error connecting to the cluster',)),
    KnownError(
        'ceph-monitors',
        r'RADOS invalid argument \(error connecting to the cluster\)',
        'Ceph\'s library cannot use the addresses of the monitors: mon_host '
        'in ceph.conf has a name that this host cannot resolve, or text that '
        'is not an address.',
        'Correct mon_host; try its names with getent hosts. ' + HOST_CHECK,
        _OLD,
        ('[errno 22] RADOS invalid argument (error connecting to the '
         'cluster)',)),
    KnownError(
        'ceph-command',
        r'rbd: couldn\'t connect to the cluster!',
        'The command rbd, with which Nova imports an image, cannot connect to '
        'Ceph: no monitor answers, or Ceph refuses the user or the key.',
        'Compare the keyring of this host with ceph auth get; see [libvirt] '
        'rbd_user. ' + HOST_CHECK,
        _OLD,
        ('2026-11-27T13:45:32.169+0000 7f37a33cd6c0 -1 monclient(hunting): '
         'handle_auth_bad_method server allowed_methods [2] but i only '
         'support [2]\nrbd: couldn\'t connect to the cluster!\n'
         'rbd: -p [ --pool ] is deprecated, use --dest-pool',)),
    KnownError(
        'ceph-configuration',
        r'RADOS object not found '
        r'\(error (calling conf_read_file|connecting to the cluster)\)'
        r'|RADOS invalid argument \(error calling conf_read_file\)'
        r'|Error initializing cluster client: '
        r'(ObjectNotFound|InvalidArgumentError)\('
        r'|global_init: unable to open config file'
        r'|error connecting: No such file or directory'
        r'|error reading conf file [^\n]+: '
        r'(No such file or directory|Invalid argument)',
        'Ceph\'s library finds no configuration that it can read, no monitor '
        'in it (mon_host), or no key of its user.',
        'Copy ceph.conf and the keyring to this host, readable for the user '
        'of nova-compute; see [libvirt] images_rbd_ceph_conf and rbd_user. ' +
        HOST_CHECK,
        _SEEN,
        ('[errno 2] RADOS object not found (error calling conf_read_file)',
         '[errno 2] RADOS object not found (error connecting to the '
         'cluster)',
         '[errno 22] RADOS invalid argument (error calling conf_read_file)',
         'Error initializing cluster client: ObjectNotFound(\'RADOS object '
         'not found (error calling conf_read_file)\')',
         'Error initializing cluster client: InvalidArgumentError(\'RADOS '
         'invalid argument (error calling conf_read_file)\')',
         'global_init: unable to open config file from search list '
         '/etc/ceph/other.conf',
         DIED + _BLOCKDEV + 'error connecting: No such file or directory',
         DIED + _BLOCKDEV + 'error reading conf file /etc/ceph/other.conf: '
         'No such file or directory',
         DIED + _BLOCKDEV + 'error reading conf file /etc/ceph/other.conf: '
         'Invalid argument')),
    KnownError(
        'ceph-configuration-letters',
        r'strict_ischar\(ch\)',
        'ceph.conf has a character that is not ASCII, or a byte order mark. '
        'Ceph\'s library ends every process that reads the file: commands, '
        'QEMU, and nova-compute itself.',
        'Remove the character.',
        _OLD,
        ('rbd: /usr/include/boost/spirit/home/support/char_encoding/'
         'standard.hpp:129: static bool boost::spirit::char_encoding::'
         'standard::isblank(int): Assertion `strict_ischar(ch)\' failed.',
         DIED + 'qemu-system-x86_64: /usr/include/boost/spirit/home/support/'
         'char_encoding/standard.hpp:129: static bool boost::spirit::'
         'char_encoding::standard::isblank(int): Assertion '
         '`strict_ischar(ch)\' failed.')),
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
        r"error opening pool ('[^\n']*': \(2\)|[^\n']+:) "
        r"No such file or directory"
        r"|RADOS object not found \(error opening pool '[^\n']*'\)",
        'Ceph has no pool of that name.',
        'Correct [libvirt] images_rbd_pool, or rbd_pool of Cinder (ceph osd '
        'pool ls). ' + HOST_CHECK,
        _SEEN,
        (DIED + _BLOCKDEV + 'error opening pool nopool: No such file or '
         'directory',
         DIED + _NEWER + 'error opening pool nopool: No such file or '
         'directory',
         DIED + _BLOCKDEV + 'error opening pool no pool: No such file or '
         'directory',
         "rbd: error opening pool 'nopool': (2) No such file or directory",
         "[errno 2] RADOS object not found (error opening pool 'nopool')",
         "[errno 2] RADOS object not found (error opening pool 'no pool')")),
    KnownError(
        'ceph-permission',
        r'error reading header from [^\n]+: Operation not permitted'
        r'|(RBD|RADOS) permission error \((?!error connecting )'
        r'|rbd: import failed: \(1\) Operation not permitted',
        'This user has no access to the pool in Ceph, or may only read it.',
        'Give the user access to the pool: ceph auth caps with "profile rbd '
        'pool=...", and in the same command all capabilities that the user '
        'has already (ceph auth get). ' + HOST_CHECK,
        _SEEN,
        (DIED + _BLOCKDEV + 'error reading header from disk: Operation not '
         'permitted',
         DIED + '2026-11-27T10:25:44.473+0000 7f6fc3fff6c0 -1 librbd::image::'
         'OpenRequest: failed to stat v2 image header: (1) Operation not '
         'permitted\n' + _NEWER + 'error reading header from disk: Operation '
         'not permitted',
         '[errno 1] RBD permission error (error listing images)',
         "[errno 1] RADOS permission error (Failed to stat 'rbd_directory')",
         '2026-11-27T13:45:47.153+0000 7faf6f7fe6c0 -1 librbd::image::'
         'CreateRequest: 0x55991f0b0990 handle_add_image_to_directory: error '
         'adding image to directory: (1) Operation not permitted\n'
         'rbd: image creation failed\n\n'
         'Importing image: 0% complete...failed.\n'
         'rbd: import failed: (1) Operation not permitted')),
    KnownError(
        'ceph-image-there',
        r'RBD image already exists \(error creating (image|clone)\)'
        r'|rbd: import failed: \(17\) File exists',
        'Ceph already has an image with that name: a remainder of an '
        'interrupted boot, or the disk of a guest.',
        'Check with rbd status whether a client has the image open, and with '
        'openstack server show whether the server exists. If neither is the '
        'case, remove the image with rbd rm.',
        _OLD,
        ('[errno 17] RBD image already exists (error creating image)',
         '[errno 17] RBD image already exists (error creating clone)',
         '2026-11-27T13:45:29.933+0000 7fb742e9b380 -1 librbd: rbd image disk '
         'already exists\nrbd: image creation failed\n\n'
         'Importing image: 0% complete...failed.\n'
         'rbd: import failed: (17) File exists')),
    KnownError(
        'ceph-data-pool',
        r'validate_data_pool: data pool [^\n]+ does not exist',
        'Ceph has no pool with the name in rbd_default_data_pool, which is to '
        'hold the data of new disks.',
        'Correct the name in ceph.conf, in ceph config get client.USER, or in '
        'rbd config pool list of the pool of the disks; or create the pool. ' +
        HOST_CHECK,
        _OLD,
        ('rbd: image creation failed2026-11-27T17:24:51.849+0000 7f579649a380 '
         '-1 librbd::image::CreateRequest: 0x5623454b2990 validate_data_pool: '
         'data pool nodata does not exist\n\n\n'
         'Importing image: 0% complete...failed.\n'
         'rbd: import failed: (2) No such file or directory',)),
    KnownError(
        'ceph-not-created',
        r'RBD image not found \(error creating (image|clone)\)',
        'Ceph does not have what the disk is made from, or made in: the image '
        'of Glance or its snapshot, or the pool with the name in '
        'rbd_default_data_pool.',
        'Look for the image and its snapshot "snap" in the pool of Glance '
        '(rbd ls, rbd snap ls), and for the data pool in ceph.conf. ' +
        HOST_CHECK,
        _OLD,
        ('[errno 2] RBD image not found (error creating clone)',
         '[errno 2] RBD image not found (error creating image)')),
    KnownError(
        'ceph-cannot-create',
        r'RBD (operation not supported|invalid argument) '
        r'\(error creating (image|clone)\)'
        r'|rbd: import failed: \(95\) Operation not supported',
        'Ceph cannot create a disk in this pool: the pool is erasure coded, '
        'the OSDs have no class rbd, or the snapshot that the disk is cloned '
        'from is not protected.',
        'Look at the pool (ceph osd pool ls detail) and at the snapshot of '
        'the image in the pool of Glance (rbd snap ls). ' + HOST_CHECK,
        _SEEN,
        ('[errno 95] RBD operation not supported (error creating image)',
         '[errno 22] RBD invalid argument (error creating image)',
         '[errno 22] RBD invalid argument (error creating clone)',
         'handle_add_image_to_directory: error adding image to directory: '
         '(95) Operation not supported\nrbd: image creation failed\n\n'
         'Importing image: 0% complete...failed.\n'
         'rbd: import failed: (95) Operation not supported')),
    KnownError(
        'ceph-image-gone',
        r'error reading header from [^\n]+: No such file or directory'
        r'|RBD image not found \((?!error creating )',
        'The disk is not in Ceph any more, or it is in another pool.',
        'Look for the disk with rbd ls and rbd trash ls. rbd trash restore '
        'restores an image from the trash.',
        _SEEN,
        (DIED + _BLOCKDEV + 'error reading header from gone_disk: No such '
         'file or directory',
         DIED + _NEWER + 'error reading header from gone: No such file or '
         'directory',
         DIED + _BLOCKDEV + 'error reading header from gone disk: No such '
         'file or directory',
         "[errno 2] RBD image not found (error opening image b'gone' at "
         'snapshot None)')),
    KnownError(
        'ceph-busy',
        r'RBD image is busy \(',
        'A client has the image open, for example a guest on another host, or '
        'a client that died less than a minute ago; or the image has clones.',
        'rbd status shows clients, and rbd children shows clones. Repeat the '
        'operation when nothing uses the image.',
        'source (src/pybind/rbd/rbd.pyx of Ceph 16.2)',
        ('[errno 16] RBD image is busy (error removing image)',)),
    KnownError(
        'ceph-blocklisted',
        r'Cannot send after transport endpoint shutdown'
        r'|(RBD|RADOS) connection was shutdown \(',
        'This client is on Ceph\'s blocklist and can no longer read and '
        'write: another client took over its lock, or an operator fenced the '
        'host.',
        'ceph osd blocklist ls shows the blocklist. If the host has no fault '
        'and no operator fenced it, run ceph osd blocklist rm ADDRESS, and '
        'restart the guest.',
        _SEEN,
        (DIED + _BLOCKDEV + 'error reading header from disk: Cannot send '
         'after transport endpoint shutdown',
         "internal error: unable to execute QEMU command 'block_resize': "
         'Failed to resize file: Cannot send after transport endpoint '
         'shutdown',
         "[errno 108] RBD connection was shutdown (error creating snapshot "
         "b'zz' from b'disk')",
         "[errno 108] RADOS connection was shutdown (Failed to stat "
         "'rbd_directory')",
         "[errno 108] RBD connection was shutdown (error opening image "
         "b'two' at snapshot None)")),
    KnownError(
        'ceph-full',
        r'RBD (insufficient space available|disk quota exceeded) \('
        r'|RADOS no space \(',
        'The pool or the whole cluster is full, or the pool has reached its '
        'quota. In most cases Ceph reports no error: guests that write, and '
        'snapshots, wait until there is space.',
        'Add space or raise the quota (ceph df, ceph osd pool get-quota). '
        'Waiting guests and snapshots then continue. ' + HOST_CHECK,
        'source (src/pybind/rbd/rbd.pyx and src/pybind/rados/rados.pyx of '
        'Ceph 18.2)',
        ('[errno 28] RBD insufficient space available (error creating image)',
         '[errno 122] RBD disk quota exceeded (error creating image)',
         "[errno 28] RADOS no space (error reading b'disk')")),
    KnownError(
        'secret-named-badly',
        r'missing username for auth|invalid secret uuid \'[^\n]*\''
        r'|missing secret uuid or usage attribute'
        r"|Invalid value for attribute 'uuid' in element 'secret': ",
        'A disk needs both the user of Ceph and the UUID of the secret: one '
        'is missing, or the value is not a UUID.',
        'Set both [libvirt] rbd_user and rbd_secret_uuid, or both options of '
        'Cinder. ' + HOST_CHECK,
        'libvirt 9.0',
        ("XML error: invalid secret uuid 'foo'",
         "XML error: invalid secret uuid 'what is no UUID'",
         'XML error: missing username for auth',
         'XML error: missing secret uuid or usage attribute',
         # libvirt 12.8
         "XML error: Invalid value for attribute 'uuid' in element 'secret': "
         "'none'. Expected UUID")),
    KnownError(
        'secret-of-another-kind',
        r'secret with uuid \S+ is of type \'\w+\' not expected \'\w+\' type',
        'The secret in libvirt has another usage type than this storage '
        'needs.',
        'Define a secret with the right usage type (virsh secret-define), and '
        'set [libvirt] rbd_secret_uuid, or rbd_secret_uuid of Cinder, to its '
        'UUID.',
        'libvirt 9.0',
        ("invalid argument: secret with uuid "
         "d0267216-3ee7-489c-a489-ada32f277944 is of type 'volume' not "
         "expected 'ceph' type",)),
    KnownError(
        'secret-without-value',
        r"Secret not found: secret '\S*' does not have a value",
        'The secret in libvirt that opens the storage has no value. An '
        'ephemeral secret loses its value when libvirt restarts.',
        'Set the value (virsh secret-set-value) to the key of the Ceph user '
        '(ceph auth get-key).',
        'libvirt 9.0 and 11.3',
        ("Secret not found: secret 'd9cd7487-3099-4d65-a423-a1ebe4539bef' "
         'does not have a value',)),
)
