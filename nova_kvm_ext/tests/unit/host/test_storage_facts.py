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

"""What is read of Ceph, from a Python, a QEMU and a libvirt that are none."""

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any
from unittest import mock

import ddt
import fixtures
from oslotest import base

from nova_kvm_ext.host import nova_python
from nova_kvm_ext.host import options
from nova_kvm_ext.host import storage_facts
from nova_kvm_ext.host import storage_model

UUID = '11111111-2222-3333-4444-555555555555'
KEY = b'key of nova'

# As Ceph 16.2.15's does: the class of an error has its number.
RADOS = """
import os
# As Ceph says it of a pool that has reached its quota.
HEALTH = b'{"status": "HEALTH_WARN", "checks": {"POOL_FULL": {"detail": [' \
         b'{"message": "pool \\'%s\\' is full (running out of quota)"}]}}}'
HEALTH = HEALTH % (os.environ['CEPH_ARGS'] or 'vms-old').encode()
class Error(Exception):
    def __init__(self, message, errno):
        super().__init__(f'[errno {errno}] {message}')
        self.errno = errno
class ObjectNotFound(Error):
    pass
class InvalidArgumentError(Error):
    pass
class WriteOpCtx:
    keys = None
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass
class Ioctx:
    def stat(self, name):
        fail('read')
    def remove_omap_keys(self, operation, keys):
        operation.keys = keys
    def operate_write_op(self, operation, name):
        assert operation.keys and named_well(name)
        fail('write')
        raise ObjectNotFound('there is no such object', 2)
    def execute(self, name, *called):
        assert called == ('rbd', 'dir_remove_image', b'') and named_well(name)
        fail('class')
        raise InvalidArgumentError('the class needs a name', 22)
def named_well(name):
    return name.startswith('rbd_data.nova-kvm-ext.') and len(name) > 40
class DataPool(Ioctx):
    def remove_object(self, name):
        assert named_well(name)
        fail('data write')
        raise ObjectNotFound('there is no such object', 2)
def fail(step):
    wanted = os.environ['CEPH_ARGS']
    name, _, number = wanted.partition(':')
    if name == step:
        kind = ObjectNotFound if number == '2' else Error
        raise kind(f'RADOS error ({step})', int(number))
class Rados:
    def __init__(self, rados_id, conffile):
        assert (rados_id, conffile) == ('nova', '/etc/ceph/ceph.conf')
        self.options = {}
        fail('conf')
    def conf_set(self, name, value):
        self.options[name] = value
    def conf_get(self, name):
        if name == 'rbd_default_data_pool':
            return os.environ.get('CEPH_CONF', '')
        if name == 'auth_client_required':
            return os.environ.get('CEPH_KEYRING', 'cephx, none')
        assert name == 'mon_host'
        return '' if os.environ['CEPH_ARGS'] == 'connect:2' else '[::1]'
    def connect(self):
        assert self.options['client_mount_timeout'] == '5', self.options
        fail('connect with key' if 'key' in self.options else 'connect')
        if 'key' in self.options:
            assert self.options['key'] == 'a2V5IG9mIG5vdmE=', self.options
    def mon_command(self, command, given):
        fail('health')
        return 0, HEALTH, ''
    def open_ioctx(self, pool):
        if pool == 'ec':
            fail('data')
            return DataPool()
        assert pool == 'vms'
        fail('pool')
        return Ioctx()
"""


# QEMU repeats the option before what is wrong with it.
OPTION = ('qemu-system-x86_64: -blockdev driver=rbd,node-name=probe,pool=none,'
          'image=none,conf=/nonexistent/ceph.conf: ')


class LibvirtError(Exception):

    def __init__(self, code: int) -> None:
        super().__init__(f'libvirt error {code}\x1b')
        self.code = code

    def get_error_code(self) -> int:
        return self.code


@ddt.ddt
class StorageFactsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.module('rados', RADOS)
        self.module('rbd', '')
        self.program('ceph')
        self.program('rbd')
        self.options: dict[str, Any] = {
            'images_type': 'rbd', 'rbd_pool': 'vms', 'rbd_user': 'nova',
            'rbd_secret': UUID, 'ceph_conf': '/etc/ceph/ceph.conf'}
        self.secret = mock.Mock(value=mock.Mock(return_value=KEY))
        self.connection = mock.Mock()
        self.connection.secretLookupByUUIDString.return_value = self.secret

    def module(self, name: str, text: str) -> None:
        with open(os.path.join(self.directory, f'{name}.py'), 'w') as f:
            f.write(text)

    def program(self, name: str, text: str = '') -> str:
        path = os.path.join(self.directory, name)
        with open(path, 'w') as f:
            f.write(f'#!/bin/sh\n{textwrap.dedent(text)}\n')
        os.chmod(path, 0o755)
        return path

    def read(self, fault: str = '', emulator: str | None = None,
             python: nova_python.Python | None = None, data_pool: str = ''
             ) -> storage_model.StorageFacts:
        return storage_facts.read(
            options.HostOptions(files=('nova.conf',), settings=None,
                                **self.options),
            self.connection, python or nova_python.Python(
                (sys.executable,), environment={
                    'PYTHONPATH': self.directory, 'PATH': self.directory,
                    'CEPH_ARGS': fault, 'CEPH_CONF': data_pool}), emulator)

    def test_all_is_well(self):
        found = self.read()
        self.assertEqual(storage_model.SecretFacts(True, True), found.secret)
        self.assertEqual(storage_model.CephFacts(
            True, sys.executable, modules={'rados': '', 'rbd': ''},
            programs={name: os.path.join(self.directory, name)
                      for name in ('ceph', 'rbd')},
            step='done', key_error=''), found.ceph)
        self.assertIsNone(found.driver)

    def test_nothing_is_asked_without_use(self):
        self.options = {'images_type': 'qcow2'}
        with mock.patch('subprocess.run') as run:
            self.assertEqual(storage_model.StorageFacts(), self.read())
        run.assert_not_called()
        self.connection.secretLookupByUUIDString.assert_not_called()

    def test_volumes_alone(self):
        """Nova asks Ceph nothing then."""
        self.options['images_type'] = 'qcow2'
        found = self.read()
        self.assertEqual(storage_model.CephFacts(), found.ceph)
        self.assertTrue(found.secret.has_value)

    @ddt.data(('conf:2', 'conf', 2), ('connect:2', 'connect', 2),
              ('connect:13', 'connect', 13), ('connect:110', 'connect', 110),
              ('pool:2', 'pool', 2), ('read:1', 'read', 1),
              ('write:1', 'write', 1), ('write:110', 'write', 110),
              ('write:95', 'write', 95), ('class:1', 'class', 1),
              ('class:95', 'class', 95), ('class:110', 'class', 110),
              # What another Ceph says of a call without a name.
              ('class:5', 'done', None),
              # The list of an empty pool's images.
              ('read:2', 'done', None))
    @ddt.unpack
    def test_steps(self, fault, step, number):
        found = self.read(fault).ceph
        self.assertEqual((step, number), (found.step, found.errno))
        self.assertEqual(bool(number), 'RADOS error' in found.error)
        self.assertIs(fault != 'connect:2', found.monitors)
        self.assertIsNone(found.signal)

    @ddt.data(('', 'done', None), ('data:2', 'data', 2),
              ('data write:1', 'data', 1), ('data write:110', 'data', 110))
    @ddt.unpack
    def test_data_pool(self, fault, step, number):
        """It is the client's, or else that of the pool."""
        override = """
            class RBD:
                def config_get(self, pool, name):
                    assert name == 'rbd_default_data_pool', name
                    {}
            """
        for of_client, of_pool in (('ec', 'raise KeyError(name)'),
                                   ('', 'return "ec"'),
                                   ('other', 'return "ec"')):
            self.module('rbd', textwrap.dedent(override).format(of_pool))
            found = self.read(fault, data_pool=of_client).ceph
            self.assertEqual((step, number, 'ec'), (
                found.step, found.errno, found.data_pool))

    @ddt.data((None, True), ('cephx', True), ('none', False))
    @ddt.unpack
    def test_authentication(self, written, expected):
        environment = {'PYTHONPATH': self.directory, 'PATH': self.directory,
                       'CEPH_ARGS': 'connect:13'}
        if written is not None:
            environment['CEPH_KEYRING'] = written
        found = self.read(python=nova_python.Python(
            (sys.executable,), environment=environment)).ceph
        self.assertIs(expected, found.cephx)
        self.assertEqual(('connect', 13), (found.step, found.errno))

    def test_data_pool_that_is_the_same(self):
        found = self.read(data_pool='vms').ceph
        self.assertEqual(('done', ''), (found.step, found.data_pool))

    def test_library_that_ends_the_process(self):
        """As Ceph 16.2 of Debian 12 does over ceph.conf that is not ASCII."""
        self.module('rados', RADOS.replace("fail('conf')", 'os.abort()'))
        found = self.read().ceph
        self.assertEqual(('conf', signal.SIGABRT, None),
                         (found.step, found.signal, found.errno))
        self.assertIn('gives no answer', found.error)

    def test_full_pool_is_not_written_to(self):
        """That would wait."""
        self.module('rados', RADOS.replace("fail('write')", 'os.abort()'))
        self.assertEqual(('done', True), (
            (found := self.read('vms').ceph).step, found.full))

    @ddt.data(('vms', True), ('', False), ('health:13', False))
    @ddt.unpack
    def test_full(self, pool, expected):
        """Where the user may not ask, nothing is known of it."""
        found = self.read(pool).ceph
        self.assertEqual(('done', ''), (found.step, found.error))
        self.assertIs(expected, found.full)

    def test_key_that_ceph_refuses(self):
        found = self.read('connect with key:13').ceph
        self.assertEqual(('done', ''), (found.step, found.error))
        self.assertEqual(13, found.key_errno)
        self.assertIn('RADOS error', found.key_error)

    @ddt.data('connect', 'read')
    def test_ceph_that_hangs(self, step):
        """What was said before it was killed counts, whole lines of it."""
        said = [json.dumps(line) for line in (
            {'modules': {'rados': '', 'rbd': ''},
             'programs': {'ceph': '/ceph', 'rbd': '/rbd'}},
            {'step': 'conf'}, {'step': step})]
        killed = subprocess.TimeoutExpired(
            'python', 25, output='\n'.join([*said, '{"ste']).encode())
        with mock.patch('subprocess.run', side_effect=killed):
            found = self.read().ceph
        self.assertEqual(step, found.step)
        self.assertIn('does not answer within 25 s', found.error)
        self.assertIsNone(found.errno)
        self.assertIsNone(found.key_error)
        self.assertEqual('/ceph', found.programs['ceph'])

    def test_bindings(self):
        self.module('rados', 'raise ImportError("librados.so.2: no\x1b")')
        os.unlink(os.path.join(self.directory, 'ceph'))
        found = self.read().ceph
        self.assertEqual({'rados': 'librados.so.2: no', 'rbd': ''},
                         found.modules)
        self.assertEqual('', found.step)
        self.assertIsNone(found.programs['ceph'])

    @ddt.data('exit 7', 'echo garbage', "echo '[1, 2]'", "echo '{}'",
              """echo '{"modules": 7, "programs": []}'""")
    def test_python_that_says_nonsense(self, program):
        path = self.program('python', program)
        found = self.read(python=nova_python.Python((path,))).ceph
        self.assertTrue(found.unknown)
        self.assertEqual({}, found.modules)

    def test_python_elsewhere(self):
        found = self.read(python=nova_python.Python(
            unknown='a file system of its own', elsewhere=True)).ceph
        self.assertTrue(found.elsewhere)

    def test_the_key_is_on_no_command_line(self):
        given = []

        def run(*args, **kwargs):
            given.append((args, os.read(kwargs['stdin'], 10000)))
            return mock.Mock(stdout='', stderr='', returncode=1)

        with mock.patch('subprocess.run', run):
            self.read()
        key = base64.b64encode(KEY).decode()
        (args, text), = given
        self.assertNotIn(key, str(args))
        self.assertEqual(key, json.loads(text)['key'])
        self.assertNotIn(key, repr(self.read()))

    def test_no_secret(self):
        self.connection.secretLookupByUUIDString.side_effect = LibvirtError(66)
        self.assertEqual(storage_model.SecretFacts(
            False, None, 'libvirt error 66'), self.read().secret)

    def test_no_value(self):
        self.secret.value.side_effect = LibvirtError(66)
        self.assertEqual(storage_model.SecretFacts(
            True, False, 'libvirt error 66'), self.read().secret)

    def test_private_secret(self):
        self.secret.value.side_effect = LibvirtError(65)
        found = self.read()
        self.assertEqual((True, None), (found.secret.there,
                                        found.secret.has_value))
        self.assertIsNone(found.ceph.key_error)

    @ddt.data((0, ''), (1, 'volume'), (2, ''), (3, 'iscsi'), (4, 'tls'),
              (5, 'vtpm'), (99, ''))
    @ddt.unpack
    def test_usage(self, number, expected):
        """By virSecretUsageType."""
        self.secret.usageType.return_value = number
        self.assertEqual(expected, self.read().secret.usage)
        self.secret.value.side_effect = LibvirtError(65)
        self.assertEqual(expected, self.read().secret.usage)

    def test_no_uuid(self):
        """VIR_ERR_INVALID_ARG."""
        self.connection.secretLookupByUUIDString.side_effect = LibvirtError(8)
        self.assertEqual(
            storage_model.SecretFacts(None, None, 'libvirt error 8', True),
            self.read().secret)

    def test_value_that_libvirt_does_not_get(self):
        self.secret.value.side_effect = LibvirtError(8)
        self.assertIs(False, self.read().secret.malformed)

    @ddt.data(LibvirtError(38), RuntimeError('lost connection'))
    def test_libvirt_that_fails(self, error):
        self.connection.secretLookupByUUIDString.side_effect = error
        self.assertIsNone(self.read().secret.there)

    def test_without_libvirt(self):
        self.connection = None
        self.assertEqual(storage_model.SecretFacts(), self.read().secret)

    # What QEMU 7.2 says with and without its package of block drivers, and
    # what QEMU 10.0 says without, with one that is broken, and with one that
    # does not find Ceph's library.
    @ddt.data(
        (OPTION + 'error reading conf file /nonexistent/ceph.conf: No such '
         'file or directory', True),
        ("qemu: module block-block-rbd not found, do you want to install "
         "qemu-block-extra package?\n" + OPTION + "Unknown driver 'rbd'",
         False),
        (OPTION + 'Unable to load module rbd. Perhaps you want to install '
         'qemu-block-extra or qemu-block-supplemental package?\n' +
         OPTION + "Unknown driver 'rbd'", False),
        (OPTION + 'failed to open module: /usr/lib/x86_64-linux-gnu/qemu/'
         'block-rbd.so: file too short\n' +
         OPTION + "Unknown driver 'rbd'", False),
        (OPTION + 'failed to open module: librbd.so.1: cannot open shared '
         'object file: No such file or directory\n' +
         OPTION + "Unknown driver 'rbd'", False),
        (OPTION + "Driver 'rbd' is not whitelisted", False),
        (OPTION + 'Out of memory', None),
        ("Could not open '/dev/kvm'", None), ('', None))
    @ddt.unpack
    def test_qemu(self, said, expected):
        with open(os.path.join(self.directory, 'said'), 'w') as f:
            f.write(said)
        qemu = self.program(
            'qemu', f'cat {self.directory}/said >&2; exit 1')
        found = self.read(emulator=qemu)
        self.assertIs(expected, found.driver)
        self.assertEqual(expected is True, found.driver_error == '')
        self.assertNotIn('-blockdev', found.driver_error)

    def test_qemu_that_hangs(self):
        self.useFixture(fixtures.MockPatchObject(
            storage_facts, '_QEMU_SECONDS', 0.5))
        found = self.read(emulator=self.program('qemu', 'exec sleep 60'))
        self.assertIsNone(found.driver)
        self.assertIn('timed out', found.driver_error)
