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

import errno
import io
import json
import logging
import os
import stat

import fixtures
from nova import exception
from oslo_concurrency import processutils
from oslotest import base

from nova_kvm_ext.boot import worker
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode


class LibvirtError(Exception):

    def get_error_code(self) -> int:
        return 38   # VIR_ERR_SYSTEM_ERROR


NOT_RUNNING = LibvirtError(
    "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such "
    "file or directory")


def caused(error: Exception, cause: Exception,
           implicitly: bool = False) -> Exception:
    """An error raised from another, or while that one was handled."""
    try:
        try:
            raise cause
        except Exception:
            if implicitly:
                raise error
            raise error from cause
    except Exception as e:
        return e


class LibvirtErrorTestCase(base.BaseTestCase):

    def test_itself(self):
        self.assertIs(NOT_RUNNING, errors.libvirt_error(NOT_RUNNING))

    def test_among_the_causes(self):
        for implicitly in (False, True):
            inner = LibvirtError('inner')
            error = caused(RuntimeError('outer'),
                           caused(OSError('middle'), inner, implicitly),
                           implicitly)
            self.assertIs(inner, errors.libvirt_error(error))

    def test_none(self):
        self.assertIsNone(errors.libvirt_error(None))
        self.assertIsNone(errors.libvirt_error(
            caused(ValueError('x'), KeyError('y'))))


class AsStopTestCase(base.BaseTestCase):

    def assertStop(self, code: ExitCode, error: Exception, *words: str,
                   otherwise: ExitCode = ExitCode.NO_BOOT) -> str:
        found = worker._as_stop(error, otherwise)
        self.assertEqual(code, found.code, str(found))
        for word in words:
            self.assertIn(word, str(found))
        return str(found)

    def test_stop(self):
        stop = worker.Stop(ExitCode.NO_BOOT, 'The guest ended.')
        self.assertIs(stop, worker._as_stop(stop, ExitCode.HOST))

    def test_usage(self):
        for error in (errors.InvalidOption('Wrong.', 'Repair it.'),
                      exception.InvalidConfiguration('Wrong. Repair it.'),
                      exception.InvalidCPUInfo(reason='Wrong. Repair it.')):
            for otherwise in (ExitCode.HOST, ExitCode.NO_BOOT):
                self.assertStop(ExitCode.USAGE, error, 'Wrong. Repair it.',
                                otherwise=otherwise)

    def test_host(self):
        self.assertStop(ExitCode.HOST,
                        errors.HostError('No bridge.', 'Make it.'),
                        'No bridge. Make it.')

    def test_host_that_the_driver_refuses(self):
        """It has the loader's exception for it, as for a wrong option."""
        cause = errors.HostError('No vhost-net.', 'Load it.')
        self.assertStop(
            ExitCode.HOST,
            caused(exception.InvalidConfiguration(str(cause)), cause),
            'No vhost-net. Load it.')

    def test_hypervisor_unavailable(self):
        text = self.assertStop(
            ExitCode.HOST,
            caused(exception.HypervisorUnavailable(), NOT_RUNNING),
            'libvirt is not running', 'systemctl start libvirtd')
        self.assertNotIn('defect', text)
        self.assertStop(ExitCode.HOST, exception.HypervisorUnavailable(),
                        'Connection to the hypervisor is broken')

    def test_no_space(self):
        for error in (
                OSError(errno.ENOSPC, 'No space left on device'),
                LibvirtError('cannot write: No space left on device'),
                processutils.ProcessExecutionError(
                    stderr='qemu-img: No space left on device'),
                caused(exception.NovaException('x'),
                       LibvirtError('No space left on device'))):
            self.assertStop(ExitCode.HOST, error, 'A file system is full.')

    def test_the_guest_is_refused(self):
        for error, words in (
                (exception.ImageUnacceptable(
                    image_id='an-id', reason='it has a backing file'),
                 'it has a backing file'),
                (LibvirtError('the accel \'kvm\' is not supported by x'),
                 'QEMU cannot use KVM'),
                (PermissionError(errno.EACCES, 'Permission denied'),
                 'Permission denied'),
                (processutils.ProcessExecutionError(stderr='bad magic'),
                 'bad magic')):
            for otherwise in (ExitCode.NO_BOOT, ExitCode.HOST):
                text = self.assertStop(otherwise, error, words,
                                       otherwise=otherwise)
                self.assertNotIn('defect', text)

    def test_libvirts_own_words_come_first(self):
        text = self.assertStop(
            ExitCode.NO_BOOT,
            caused(exception.InternalError('something'),
                   LibvirtError('the moon is full')))
        self.assertEqual('the moon is full', text)

    def test_a_defect(self):
        for otherwise in (ExitCode.NO_BOOT, ExitCode.HOST):
            self.assertStop(otherwise, AttributeError('no\x1b such\nthing'),
                            'AttributeError: no such thing',
                            'a defect of nova-kvm-ext', '--keep',
                            otherwise=otherwise)


class OnlyForGroupTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.path = self.useFixture(fixtures.TempDir()).path
        os.chmod(self.path, 0o711)
        self.chown = self.useFixture(
            fixtures.MockPatchObject(os, 'chown')).mock

    def test_qemus(self):
        worker._only_for_group(self.path, 64055)
        self.chown.assert_called_once_with(self.path, -1, 64055)
        self.assertEqual(0o710, stat.S_IMODE(os.stat(self.path).st_mode))

    def test_roots(self):
        """QEMU may be root with another group, or without its powers."""
        worker._only_for_group(self.path, 0)
        self.chown.assert_not_called()
        self.assertEqual(0o711, stat.S_IMODE(os.stat(self.path).st_mode))


class TailTestCase(base.BaseTestCase):

    def test_empty(self):
        for text in ('', '\r\n\r\n', '\x1b\x07\n \t\n'):
            self.assertIn('bootable by BIOS', worker._tail(text))

    def test_the_last_lines(self):
        text = worker._tail(''.join(
            f'line {number}\r\n\r\n' for number in range(20)))
        self.assertEqual(
            ['The end of its console:'] +
            [f'  line {number}' for number in range(12, 20)],
            text.splitlines())

    def test_hostile(self):
        text = worker._tail('\x1b[2J\x1b]0;x\x07' + 'y' * 10 ** 6 + '\n\x9b')
        self.assertLess(len(text), 250)
        self.assertTrue(text.replace('\n', '').isprintable(), ascii(text))


class DetectFormatTestCase(base.BaseTestCase):

    def detected(self, content: bytes) -> str:
        path = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'image')
        with open(path, 'wb') as f:
            f.write(content)
        return worker._detect_format(path)

    def test_qcow2(self):
        # Magic, version 3, no backing file, 64 KiB clusters, 1 MiB.
        header = (b'QFI\xfb' + (3).to_bytes(4, 'big') + bytes(12) +
                  (16).to_bytes(4, 'big') + (1 << 20).to_bytes(8, 'big'))
        self.assertEqual('qcow2', self.detected(
            header.ljust(100, b'\0') + (104).to_bytes(4, 'big') +
            bytes(128 * 1024)))

    def test_a_disk_with_a_partition_table(self):
        mbr = (bytes(446) + bytes([0x80, 0, 2, 0, 0x0e, 0, 0, 0]) +
               (2048).to_bytes(4, 'little') + (4096).to_bytes(4, 'little') +
               bytes(48) + b'\x55\xaa')
        self.assertEqual('raw', self.detected(mbr + bytes(64 * 1024)))

    def test_junk(self):
        for content in (b'', b'x', b'#!/bin/sh\n' * 100, bytes(64 * 1024)):
            self.assertEqual('raw', self.detected(content))

    def test_gpt_is_raw_to_glance(self):
        for found, wanted in (('gpt', 'raw'), ('vmdk', 'vmdk')):
            self.useFixture(fixtures.MockPatchObject(
                worker.format_inspector, 'detect_file_format',
                return_value=found))
            self.assertEqual(wanted, worker._detect_format('/x'))

    def test_what_cannot_be_told(self):
        several = worker.format_inspector.ImageFormatError(
            'Multiple formats detected')
        for error in (several,
                      PermissionError(errno.EACCES, 'Permission denied')):
            self.useFixture(fixtures.MockPatchObject(
                worker.format_inspector, 'detect_file_format',
                side_effect=error))
            raised = self.assertRaises(
                errors.InvalidOption, worker._detect_format, '/images/x')
            self.assertIn('--image /images/x', str(raised))
            self.assertIn(errors.clean(error), str(raised))
            self.assertIn('--disk-format', str(raised))


class EventsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.stream = io.StringIO()
        self.events = worker.Events(self.stream)

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line)
                for line in self.stream.getvalue().splitlines()]

    def test_one_object_a_line(self):
        self.events.step('nova', 'a\nb\u2028\ud800')
        self.events.emit('done', code=ExitCode.NO_BOOT)
        self.assertEqual(
            [{'event': 'step', 'name': 'nova', 'details': 'a\nb\u2028\ud800'},
             {'event': 'done', 'code': 4}], self.lines())
        self.assertTrue(self.stream.getvalue().isascii())

    def test_said_at_once(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        stream = os.fdopen(writer, 'w')
        self.addCleanup(stream.close)
        worker.Events(stream).step('nova')
        self.assertTrue(os.read(reader, 999).endswith(b'}\n'))

    def logged(self, name: str, level: int, text: str = 'x',
               *args: object) -> list[tuple[object, object]]:
        handler = worker._LogToEvents(self.events)
        record = logging.LogRecord(name, level, 'f', 1, text, args, None)
        if record.levelno >= handler.level:
            handler.handle(record)
        return [(line['level'], line['text']) for line in self.lines()]

    def test_what_is_passed_on(self):
        for name, level in (('nova.virt.libvirt.driver', logging.WARNING),
                            ('nova.compute', logging.ERROR),
                            ('nova_kvm_ext.driver', logging.INFO),
                            ('nova_kvm_ext.host.probe', logging.CRITICAL)):
            self.stream.truncate(0)
            self.stream.seek(0)
            self.assertEqual([(logging.getLevelName(level), 'a b')],
                             self.logged(name, level, 'a %s', '\x1bb'))

    def test_what_is_not(self):
        for name, level in (('nova.virt.libvirt.driver', logging.INFO),
                            ('nova_kvm_ext.driver', logging.DEBUG),
                            ('os_brick', logging.ERROR),
                            ('oslo_service', logging.WARNING),
                            ('root', logging.CRITICAL)):
            self.assertEqual([], self.logged(name, level), name)

    def test_length(self):
        (_, text), = self.logged('nova', logging.ERROR, 'x' * 9999)
        self.assertEqual(500, len(str(text)))
