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

import ast
import os
import shutil
import stat
import subprocess
from typing import Any
from unittest import mock

import fixtures
from lxml import etree
from oslotest import base

from nova_kvm_ext.host import kvm_proof
from nova_kvm_ext.host import probe

RUNNING = [1, 1]
PANICKED = [6, 1]
CAPABILITIES = '''
<capabilities>
  <host>
    <secmodel><model>apparmor</model></secmodel>
    <secmodel><model>dac</model>
      <baselabel type='kvm'>+64055:+109</baselabel>
    </secmodel>
  </host>
  <guest><os_type>hvm</os_type>
    <arch name='i686'><emulator>/usr/bin/qemu-i386</emulator></arch>
  </guest>
  <guest><os_type>hvm</os_type>
    <arch name='x86_64'><emulator>/usr/bin/qemu</emulator></arch>
  </guest>
</capabilities>'''


class LibvirtError(Exception):
    """What the probe knows of libvirt.libvirtError."""

    def __init__(self, message: str, code: int | None = 1) -> None:
        super().__init__(message)
        self.code = code

    def get_error_code(self) -> int | None:
        return self.code


class Domain:
    """A guest that goes through the states given, the last one for ever.

    :param states: what state() returns one after the other, or raises
    :param cpu_time: nanoseconds
    """

    def __init__(self, *states: Any, cpu_time: int = 0,
                 destroy_error: Exception | None = None) -> None:
        self.states = list(states)
        self.cpu_time = cpu_time
        self.destroy_error = destroy_error
        self.destroyed = False

    def state(self) -> list[int]:
        state = self.states[0]
        if len(self.states) > 1:
            del self.states[0]
        if isinstance(state, BaseException):
            raise state
        return state

    def info(self) -> list[int]:
        return [1, 32768, 32768, 1, self.cpu_time]

    def destroy(self) -> None:
        self.destroyed = True
        if self.destroy_error is not None:
            raise self.destroy_error


class Connection:
    """A libvirt with room for one guest.

    :param error: what createXML raises
    :param starts: whether the guest is there even so
    """

    def __init__(self, domain: Domain | None = None,
                 error: BaseException | None = None,
                 starts: bool = True) -> None:
        self.domain = domain or Domain(RUNNING, PANICKED)
        self.error = error
        self.starts = starts
        self.created: list[tuple[Any, int]] = []
        self.sector = b''
        self.sector_mode = 0
        self.capabilities: str | Exception = CAPABILITIES
        self.lib_version = 9000000
        self.version = 7002022

    def createXML(self, xml: str, flags: int) -> Domain:
        root = etree.fromstring(xml)
        self.created.append((root, flags))
        path = root.find('devices/disk/source').get('file')
        with open(path, 'rb') as file:
            self.sector = file.read()
        self.sector_mode = stat.S_IMODE(os.stat(path).st_mode)
        if self.error is not None:
            raise self.error
        return self.domain

    def lookupByUUIDString(self, uuid: str) -> Domain:
        gone = not self.starts or self.domain.destroyed or not self.created
        if gone or self.created[-1][0].findtext('uuid') != uuid:
            raise LibvirtError('Domain not found', 42)
        return self.domain

    def getCapabilities(self) -> str:
        if isinstance(self.capabilities, Exception):
            raise self.capabilities
        return self.capabilities

    def getLibVersion(self) -> int:
        return self.lib_version

    def getVersion(self) -> int:
        return self.version


class ProbeTestCase(base.BaseTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.clock = 0.0

        def sleep(seconds: float) -> None:
            self.clock += seconds

        clock = self.useFixture(fixtures.MockPatchObject(probe, 'time')).mock
        self.sleep = clock.sleep
        self.sleep.side_effect = sleep
        clock.monotonic.side_effect = lambda: self.clock

    def run_probe(self, conn: Connection,
                  **options: Any) -> probe.ProbeResult:
        """Run it and see that it cleans up."""
        result = probe.run(conn, directory=self.directory, **options)
        self.assert_clean(conn)
        self.assertLessEqual(len(result.reason), 300)
        self.assertTrue(result.reason.isprintable())
        return result

    def assert_clean(self, conn: Connection) -> None:
        self.assertEqual([], os.listdir(self.directory))
        if conn.created and conn.starts:
            self.assertTrue(conn.domain.destroyed)


class TestSector(base.BaseTestCase):

    def test_size_and_signature(self) -> None:
        self.assertEqual(512, len(probe.SECTOR))
        self.assertEqual(b'\x55\xaa', probe.SECTOR[510:])

    def test_is_what_the_source_assembles_to(self) -> None:
        for tool in ('gcc', 'ld'):
            if shutil.which(tool) is None:
                self.skipTest(
                    f'NO {tool}: whether probe.py holds what probe.S says '
                    'is NOT CHECKED; install gcc and binutils')
        machine = subprocess.run(
            ['gcc', '-dumpmachine'], check=True, capture_output=True,
            text=True).stdout
        if not machine.startswith('x86_64'):
            self.skipTest(f'THE COMPILER IS FOR {machine.strip()}: whether '
                          'probe.py holds what probe.S says is NOT CHECKED')
        directory = self.useFixture(fixtures.TempDir()).path
        linked = os.path.join(directory, 'probe.o')
        binary = os.path.join(directory, 'probe.bin')
        source = os.path.join(os.path.dirname(probe.__file__), 'probe.S')
        for command in (
                ['gcc', '-c', f'-DITERATIONS={probe.ITERATIONS}',
                 '-Wa,-mx86-used-note=no', source, '-o', linked],
                ['ld', '-m', 'elf_x86_64', '-Ttext=0x7c00',
                 '--oformat', 'binary', linked, '-o', binary]):
            subprocess.run(command, check=True, capture_output=True)
        with open(binary, 'rb') as file:
            self.assertEqual(probe.SECTOR.hex(), file.read().hex())


class TestModule(base.BaseTestCase):

    def test_imports_neither_libvirt_nor_nova(self) -> None:
        with open(probe.__file__) as file:
            tree = ast.parse(file.read())
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or '')
        self.assertEqual(set(), {n.split('.')[0] for n in names} &
                         {'libvirt', 'nova', 'eventlet'})

    def test_supported(self) -> None:
        self.assertTrue(probe.supported('x86_64'))
        self.assertFalse(probe.supported('i686'))
        self.assertFalse(probe.supported('aarch64'))


class TestDomain(ProbeTestCase):

    def test_domain(self) -> None:
        conn = Connection()
        self.run_probe(conn)
        (domain, flags), = conn.created
        self.assertEqual(2, flags)
        self.assertEqual('kvm', domain.get('type'))
        self.assertEqual('nova-kvm-ext-probe', domain.findtext('name'))
        self.assertEqual('preserve', domain.findtext('on_crash'))
        self.assertEqual('destroy', domain.findtext('on_reboot'))
        self.assertEqual('isa', domain.find('devices/panic').get('model'))
        self.assertEqual(
            'none', domain.find('devices/memballoon').get('model'))
        self.assertIsNotNone(domain.find('devices/disk/readonly'))
        self.assertIsNone(domain.find('os/type').get('machine'))
        for absent in ('cpu', 'devices/emulator', 'devices/interface',
                       'devices/graphics'):
            self.assertIsNone(domain.find(absent))

    def test_disk(self) -> None:
        conn = Connection()
        self.run_probe(conn)
        self.assertEqual(probe.SECTOR, conn.sector[:512])
        self.assertFalse(any(conn.sector[512:]))
        # One cylinder of 16 heads and 63 sectors, or SeaBIOS reads nothing.
        self.assertGreaterEqual(len(conn.sector), 16 * 63 * 512)
        self.assertEqual(0o644, conn.sector_mode)

    def test_choices(self) -> None:
        conn = Connection()
        self.run_probe(
            conn, virt_type='qemu', emulator='/opt/<&>', machine='q35',
            cpu_xml='<cpu mode="custom"><model>Nehalem</model></cpu>')
        domain = conn.created[0][0]
        self.assertEqual('qemu', domain.get('type'))
        self.assertEqual('/opt/<&>', domain.findtext('devices/emulator'))
        self.assertEqual('q35', domain.find('os/type').get('machine'))
        self.assertEqual('Nehalem', domain.findtext('cpu/model'))

    def test_each_guest_is_another(self) -> None:
        conn = Connection()
        self.run_probe(conn)
        conn.domain = Domain(PANICKED)
        self.run_probe(conn)
        first, second = (domain for domain, _ in conn.created)
        self.assertNotEqual(first.findtext('uuid'), second.findtext('uuid'))
        # One name is one log.
        self.assertEqual(first.findtext('name'), second.findtext('name'))

    def test_two_at_once(self) -> None:
        conn = Connection(starts=False)

        def create(xml: str, flags: int) -> Domain:
            name = etree.fromstring(xml).findtext('name')
            names.append(name)
            if len(names) < 3:
                raise LibvirtError(
                    f"operation failed: domain '{name}' already exists with "
                    f"uuid 6ad0a7f5-1da1-4ac1-bd5e-5ae0b5d5c5f3", 9)
            return Domain(PANICKED)

        names: list[str] = []
        with mock.patch.object(conn, 'createXML', create):
            self.assertTrue(self.run_probe(conn).runs)
        self.assertEqual(['nova-kvm-ext-probe', 'nova-kvm-ext-probe-2',
                          'nova-kvm-ext-probe-3'], names)

    def test_cpu_that_is_none(self) -> None:
        for cpu_xml in ('<cpu', '', '<devices/>',
                        '<!DOCTYPE x [<!ENTITY e SYSTEM "/etc/hosts">]>'
                        '<cpus>&e;</cpus>'):
            conn = Connection()
            self.assertRaises(ValueError, self.run_probe, conn,
                              cpu_xml=cpu_xml)
            self.assertEqual([], conn.created)
            self.assert_clean(conn)


class TestOutcomes(ProbeTestCase):

    def test_success(self) -> None:
        result = self.run_probe(
            Connection(Domain(RUNNING, RUNNING, [3, 0], PANICKED)))
        self.assertEqual(
            (True, 'a 64-bit guest under KVM counted to 50 million within '
             '0.2 s', True),
            (result.runs, result.reason, result.lasting))
        self.assertAlmostEqual(0.15, result.seconds)

    def test_success_seen_while_still_paused(self) -> None:
        self.assertTrue(self.run_probe(Connection(Domain([3, 10]))).runs)

    def test_late_with_the_cpu_to_itself(self) -> None:
        result = self.run_probe(
            Connection(Domain(RUNNING, cpu_time=9_000_000_000)))
        self.assertFalse(result.runs)
        self.assertTrue(result.lasting)
        self.assertGreaterEqual(result.seconds, 10)
        self.assertIn('did not count to 50 million within 10.0 s '
                      '(9.0 s of CPU time): KVM here is emulated or broken',
                      result.reason)

    def test_late_on_a_busy_host(self) -> None:
        result = self.run_probe(
            Connection(Domain(RUNNING, cpu_time=900_000_000)), timeout=3.0)
        self.assertIsNone(result.runs)
        self.assertFalse(result.lasting)
        self.assertIn('too busy', result.reason)
        self.assertLess(result.seconds, 4)

    def test_paused_by_qemu(self) -> None:
        result = self.run_probe(
            Connection(Domain(RUNNING, [3, 0], cpu_time=9_000_000_000)))
        self.assertIsNone(result.runs)
        self.assertFalse(result.lasting)
        self.assertIn('paused', result.reason)

    def test_refused(self) -> None:
        conn = Connection(
            error=LibvirtError('internal \x1b[31merror:\n' + 'é\u202e' * 400),
            starts=False)
        result = self.run_probe(conn)
        self.assertEqual((None, 0.0, False),
                         (result.runs, result.seconds, result.lasting))
        self.assertTrue(result.reason.startswith(
            'libvirt did not start a guest under KVM: internal [31merror: '))
        self.sleep.assert_not_called()

    def test_refused_with_the_cause_at_the_end(self) -> None:
        result = self.run_probe(Connection(
            error=LibvirtError('qemu: ' + 'x' * 400 + ': Permission denied'),
            starts=False))
        self.assertRegex(result.reason,
                         '^libvirt did not start .* [.]{3} x+: Permission')

    def test_refused_without_a_code(self) -> None:
        conn = Connection(error=LibvirtError('failed', None), starts=False)
        self.assertIsNone(self.run_probe(conn).runs)

    def test_died(self) -> None:
        for end in (LibvirtError('Domain not found', 42), [4, 0], [5, 5],
                    [6, 0]):
            result = self.run_probe(Connection(Domain(RUNNING, end)))
            self.assertIsNone(result.runs)
            self.assertFalse(result.lasting)
            self.assertRegex(
                result.reason,
                'QEMU died or the guest reset .* nova-kvm-ext-probe$')

    def test_died_at_the_last_moment(self) -> None:
        domain = Domain(RUNNING)
        with mock.patch.object(
                domain, 'info', side_effect=LibvirtError('gone', 42)):
            self.assertIn('QEMU died',
                          self.run_probe(Connection(domain)).reason)

    def test_connection_lost(self) -> None:
        result = self.run_probe(Connection(
            Domain(RUNNING, LibvirtError('Cannot recv data', 38))))
        self.assertIsNone(result.runs)
        self.assertFalse(result.lasting)
        self.assertIn('lost a guest', result.reason)
        self.assertIn('Cannot recv data', result.reason)

    def test_proof(self) -> None:
        for row in kvm_proof.TABLE:
            self.assertTrue(row.why and row.source, row.name)
        for text, runs in (
                ("Emulator '/x' does not support virt type 'kvm'", False),
                ('Could not access KVM kernel module: Permission denied\n'
                 '-accel kvm: failed to initialize kvm: Permission denied',
                 False),
                ('failed to initialize kvm: Inappropriate ioctl for device',
                 False),
                ('error: failed to set MSR 0x10a to 0x0', False),
                # Each of these passes.
                ('ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy\n'
                 'failed to initialize kvm: Device or resource busy', None),
                ('failed to initialize kvm: Cannot allocate memory', None),
                ('Could not access KVM kernel module: Permission denied: '
                 'Too many open files', None),
                ('cannot fork child process: Resource temporarily '
                 'unavailable', None),
                ('Timed out during operation: cannot acquire state change '
                 'lock', None),
                ('monitor socket did not show up: No such file or directory',
                 None),
                ('client socket is closed', None),
                ('Unable to write to cgroup: No space left on device', None),
                ('', None)):
            result = self.run_probe(Connection(
                error=LibvirtError(text), starts=False))
            self.assertIs(runs, result.runs, text)


class TestSettled(ProbeTestCase):
    """Several attempts, and what the guest in software proves."""

    def settle(self, *answers: Any, directories: Any = None,
               **options: Any) -> probe.ProbeResult:
        """Each answer is a guest's states, or what createXML raises."""
        conn = Connection(starts=False)
        left = list(answers)
        self.types: list[str] = []
        self.cpus: list[bool] = []

        def create(xml: str, flags: int) -> Domain:
            root = etree.fromstring(xml)
            self.types.append(root.get('type'))
            self.cpus.append(root.find('cpu') is not None)
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, Exception):
                raise answer
            return Domain(*answer)

        with mock.patch.object(conn, 'createXML', create):
            result = probe.settled_run(
                conn, directories=directories or [self.directory], **options)
        self.assertEqual([], os.listdir(self.directory))
        return result

    BUSY = LibvirtError('Timed out during operation: cannot acquire state '
                        'change lock')
    NO_MEMORY = LibvirtError('cannot fork child process: Cannot allocate '
                             'memory')
    DIED = (RUNNING, [5, 5])
    HUNG = (RUNNING,)

    def test_busy_for_a_while(self) -> None:
        result = self.settle(self.BUSY, self.NO_MEMORY, (PANICKED,))
        self.assertTrue(result.runs)
        self.assertEqual(['kvm'] * 3, self.types)

    def test_busy_for_long(self) -> None:
        result = self.settle(self.BUSY)
        self.assertIsNone(result.runs)
        self.assertFalse(result.lasting)
        self.assertEqual(3, len(self.types))
        self.assertLess(self.clock, 10)

    def test_proof_needs_one_attempt(self) -> None:
        self.assertIs(False, self.settle(LibvirtError(
            "Emulator 'x' does not support virt type 'kvm'")).runs)
        self.assertEqual(['kvm'], self.types)

    def test_dies_while_software_runs(self) -> None:
        for bad in (self.DIED, self.HUNG, (RUNNING, [3, 0])):
            result = self.settle(bad, bad, (PANICKED,))
            self.assertIs(False, result.runs)
            self.assertTrue(result.lasting)
            self.assertEqual(['kvm', 'kvm', 'qemu'], self.types)
            self.assertIn('ran in software', result.reason)

    def test_died_once(self) -> None:
        self.assertTrue(self.settle(self.DIED, (PANICKED,)).runs)

    def test_nothing_runs(self) -> None:
        """A host without CPU time or memory for anybody."""
        for bad in (self.DIED, self.HUNG):
            result = self.settle(bad)
            self.assertIsNone(result.runs)
            self.assertEqual(['kvm', 'kvm', 'qemu'], self.types)
            self.assertIn('nor did the same guest', result.reason)
            self.assertLess(self.clock, 60)
            self.clock = 0.0

    def test_cpu_that_cannot_be(self) -> None:
        result = self.settle(
            LibvirtError("guest CPU doesn't match specification: missing "
                         'features: avx512f'), (PANICKED,),
            cpu_xml='<cpu mode="custom"><model>x</model></cpu>')
        self.assertTrue(result.runs)
        self.assertFalse(result.lasting)
        self.assertEqual([True, False], self.cpus)
        self.assertIn('avx512f', result.reason)

    def test_disk_out_of_reach(self) -> None:
        other = self.useFixture(fixtures.TempDir()).path
        for said in ("Cannot access storage file '/x' (as uid:107): "
                     'Permission denied',
                     "-blockdev {}: Could not open '/x': Permission denied"):
            result = self.settle(
                LibvirtError(said), (PANICKED,),
                directories=['/nowhere', self.directory, other])
            self.assertTrue(result.runs)
            self.assertEqual([], os.listdir(other))
        result = self.settle((PANICKED,), directories=['/nowhere'])
        self.assertIsNone(result.runs)
        self.assertIn('No such file', result.reason)


class TestCleanup(ProbeTestCase):

    def test_other_exceptions_propagate(self) -> None:
        for error in (RuntimeError('boom'), KeyboardInterrupt()):
            conn = Connection(Domain(RUNNING, error))
            self.assertRaises(type(error), self.run_probe, conn)
            self.assert_clean(conn)

    def test_exception_after_the_guest_has_started(self) -> None:
        conn = Connection(error=KeyboardInterrupt())
        self.assertRaises(KeyboardInterrupt, self.run_probe, conn)
        self.assert_clean(conn)

    def test_libvirt_error_after_the_guest_has_started(self) -> None:
        self.assertIsNone(
            self.run_probe(Connection(error=LibvirtError('lost'))).runs)

    def test_destroy_fails(self) -> None:
        logger = self.useFixture(fixtures.FakeLogger())
        conn = Connection(Domain(
            PANICKED, destroy_error=LibvirtError('Device busy', 38)))
        self.assertTrue(self.run_probe(conn).runs)
        self.assertIn('was not destroyed', logger.output)

    def test_destroy_fails_otherwise(self) -> None:
        conn = Connection(Domain(PANICKED, destroy_error=RuntimeError()))
        self.assertRaises(RuntimeError, self.run_probe, conn)
        self.assert_clean(conn)

    def test_file_removed_by_someone_else(self) -> None:
        conn = Connection()

        def state() -> list[int]:
            for name in os.listdir(self.directory):
                os.unlink(os.path.join(self.directory, name))
            return PANICKED

        with mock.patch.object(conn.domain, 'state', state):
            self.assertTrue(self.run_probe(conn).runs)

    def test_no_directory(self) -> None:
        conn = Connection()
        self.assertRaises(FileNotFoundError, probe.run, conn,
                          directory=os.path.join(self.directory, 'none'))
        self.assertEqual([], conn.created)
