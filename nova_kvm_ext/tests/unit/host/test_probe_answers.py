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

"""What the probe guest has shown is kept for as long as it stands."""

import contextlib
import json
import os
import shutil
import stat
from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.host import probe
from nova_kvm_ext.host import probe_answers
from nova_kvm_ext.tests.unit.host import test_probe


class TestFacts(base.BaseTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path
        self.conn = test_probe.Connection()
        self.write('proc/sys/kernel/random/boot_id', 'a-boot\n')
        self.write('usr/bin/qemu', 'elf')
        self.write('dev/kvm', '')

    def write(self, path: str, content: str) -> str:
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as file:
            file.write(content)
        return path

    def read(self, emulator: str | None = None) -> dict[str, str]:
        return probe_answers.read_facts(self.conn, emulator, root=self.root)

    def test_facts(self) -> None:
        facts = self.read()
        self.assertEqual('a-boot', facts['boot'])
        self.assertEqual(os.uname().release, facts['kernel'])
        self.assertEqual('/usr/bin/qemu', facts['emulator'])
        self.assertEqual('9000000', facts['libvirt'])
        self.assertEqual('7002022', facts['qemu'])
        self.assertEqual('+64055:+109', facts['user'])

    def test_each_change_shows(self) -> None:
        def boot() -> None:
            self.write('proc/sys/kernel/random/boot_id', 'b-boot\n')

        def emulator_file() -> None:
            os.utime(os.path.join(self.root, 'usr/bin/qemu'), (1, 1))

        def device() -> None:
            os.chmod(os.path.join(self.root, 'dev/kvm'), 0o606)

        def libvirt() -> None:
            self.conn.lib_version += 1

        def qemu() -> None:
            self.conn.version += 1

        def user() -> None:
            self.conn.capabilities = test_probe.CAPABILITIES.replace(
                '64055', '0')

        for change in (boot, emulator_file, device, libvirt, qemu, user):
            before = self.read()
            change()
            after = self.read()
            self.assertEqual(
                [change.__name__],
                [name for name in before if before[name] != after[name]])

    def test_other_emulator(self) -> None:
        facts = self.read('/opt/qemu')
        self.assertEqual('/opt/qemu', facts['emulator'])
        self.assertEqual('absent', facts['emulator_file'])

    def test_nothing_there(self) -> None:
        shutil.rmtree(self.root)
        self.conn.capabilities = '<capabilities/>'
        facts = self.read()
        self.assertEqual('absent', facts['device'])
        self.assertEqual('unknown', facts['boot'])
        self.assertEqual('', facts['user'])
        self.assertTrue(all(isinstance(v, str) for v in facts.values()))

    def test_who_may_open_the_device(self) -> None:
        before = self.read()
        with mock.patch('os.getxattr', return_value=b'an ACL'):
            self.assertEqual(b'an ACL'.hex(), self.read()['acl'])
        self.write('etc/passwd', 'qemu:x:64055:109::/:/bin/false\n')
        self.write('etc/group', 'kvm:x:104:qemu\n')
        self.assertEqual(('109', '104 109'),
                         (before['groups'], self.read()['groups']))


class TestCache(test_probe.ProbeTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.state_path = self.useFixture(fixtures.TempDir()).path
        self.cache_file = os.path.join(self.state_path, 'probe.json')

    def ask(self, domain: test_probe.Domain | None = None,
            **options: Any) -> tuple[probe.ProbeResult, bool]:
        """The answer, and whether a guest was started for it."""
        conn = test_probe.Connection(domain)
        options.setdefault('key_facts', {'boot': 'a'})
        result = probe_answers.cached_run(
            conn, cache_file=self.cache_file, directories=[self.directory],
            **options)
        self.assert_clean(conn)
        return result, bool(conn.created)

    def answer(self, conn: test_probe.Connection) -> probe.ProbeResult:
        return probe_answers.cached_run(
            conn, cache_file=self.cache_file, directories=[self.directory])

    def test_success_is_kept(self) -> None:
        first, started = self.ask()
        self.assertTrue(started)
        second, started = self.ask()
        self.assertFalse(started)
        self.assertEqual((True, first.seconds, True),
                         (second.runs, second.seconds, second.lasting))
        self.assertIn(first.reason, second.reason)
        self.assertIn(self.cache_file, second.reason)
        self.assertEqual(0o600,
                         stat.S_IMODE(os.stat(self.cache_file).st_mode))
        self.assertEqual(['probe.json'], os.listdir(self.state_path))

    def test_what_is_kept(self) -> None:
        domain = test_probe.Domain
        for kept, guest in (
                (True, domain(test_probe.RUNNING, cpu_time=10_000_000_000)),
                (False, domain(test_probe.RUNNING, cpu_time=1_000_000_000)),
                (False, domain(test_probe.LibvirtError('gone', 42))),
                (False, domain(test_probe.LibvirtError('lost', 38)))):
            facts = {'case': str(guest)}
            # Else the last answer of this host would be given instead.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.cache_file)
            result, started = self.ask(guest, key_facts=facts)
            self.assertIsNot(True, result.runs)
            self.assertTrue(started)
            result, started = self.ask(key_facts=facts)
            self.assertEqual((not kept, not kept), (result.runs, started))

    def test_kept_run(self) -> None:
        """The same answer, without a guest."""
        conn = test_probe.Connection()

        def kept(**options: Any) -> probe.ProbeResult | None:
            return probe_answers.kept_run(
                conn, cache_file=self.cache_file, **options)

        self.assertIsNone(kept())
        self.answer(conn)
        started = list(conn.created)
        self.assertIs(True, kept().runs)
        self.assertIn(self.cache_file, kept().reason)
        self.assertIsNone(kept(virt_type='qemu'))
        self.assertIsNone(kept(cpu_xml='<cpu mode="maximum"/>'))
        conn.version += 1
        self.assertIsNone(kept())
        self.assertEqual(started, conn.created)

    def test_kept_run_without_libvirt(self) -> None:
        conn = test_probe.Connection()
        self.answer(conn)
        with mock.patch.object(conn, 'getCapabilities',
                               side_effect=test_probe.LibvirtError(
                                   'lost', 38)):
            self.assertIsNone(
                probe_answers.kept_run(conn, cache_file=self.cache_file))

    def test_refusal_is_not_kept(self) -> None:
        conn = test_probe.Connection(
            error=test_probe.LibvirtError('denied'), starts=False)
        result = probe_answers.cached_run(
            conn, cache_file=self.cache_file, key_facts={},
            directories=[self.directory])
        self.assertIsNone(result.runs)
        self.assertFalse(os.path.exists(self.cache_file))

    def test_each_part_of_the_key(self) -> None:
        self.ask()
        changes: tuple[dict[str, Any], ...] = (
            {'key_facts': {'boot': 'b'}}, {'key_facts': {}},
            {'virt_type': 'qemu'}, {'cpu_xml': '<cpu mode="maximum"/>'},
            {'emulator': '/opt/qemu'}, {'machine': 'q35'},
            {'timeout': 20.0})
        for change in changes:
            _, started = self.ask(**change)
            self.assertTrue(started, change)
            _, started = self.ask(**change)
            self.assertFalse(started, change)
        with mock.patch.object(probe, 'SECTOR', b'x' * 512):
            self.assertTrue(self.ask()[1])

    def test_facts_are_read_when_not_given(self) -> None:
        conn = test_probe.Connection()
        for conn.version, starts in ((7, True), (7, False), (8, True)):
            del conn.created[:]
            conn.domain = test_probe.Domain(test_probe.PANICKED)
            self.answer(conn)
            self.assertEqual(starts, bool(conn.created))

    def test_facts_that_libvirt_withholds(self) -> None:
        conn = test_probe.Connection()
        conn.capabilities = test_probe.LibvirtError('no connection', 38)
        result = self.answer(conn)
        self.assertTrue(result.runs)
        self.assertFalse(os.path.exists(self.cache_file))
        conn.capabilities = RuntimeError()
        self.assertRaises(
            RuntimeError, probe_answers.cached_run, conn,
            cache_file=self.cache_file, directories=[self.directory])

    def test_bounded(self) -> None:
        for boot in range(12):
            self.ask(key_facts={'boot': str(boot)})
        with open(self.cache_file) as file:
            self.assertEqual(8, len(json.load(file)))
        self.assertFalse(self.ask(key_facts={'boot': '4'})[1])
        self.assertTrue(self.ask(key_facts={'boot': '3'})[1])

    def test_corrupt_file(self) -> None:
        self.ask()
        for content in (b'', b'{', b'\xff\xfe', b'[]', b'null', b'7',
                        b'[' * 60000, b'{"a": 1' + b'0' * 5000 + b'}',
                        b' ' * 70000 + b'{}'):
            with open(self.cache_file, 'wb') as file:
                file.write(content)
            self.assertTrue(self.ask()[1], content[:20])
            self.assertFalse(self.ask()[1])

    def test_wrong_types(self) -> None:
        self.ask()
        with open(self.cache_file) as file:
            (key, good), = json.load(file).items()
        wrong: tuple[Any, ...] = (
            None, [], 'x', {}, good | {'runs': 1},
            good | {'runs': 'false'}, good | {'reason': None},
            good | {'seconds': True}, good | {'seconds': '1'},
            good | {'seconds': float('inf')}, good | {'seconds': 10 ** 400})
        for bad in wrong:
            with open(self.cache_file, 'w') as file:
                json.dump({key: bad}, file)
            self.assertTrue(self.ask()[1], bad)

    def test_hostile_reason(self) -> None:
        self.ask()
        with open(self.cache_file) as file:
            (key, good), = json.load(file).items()
        with open(self.cache_file, 'w') as file:
            json.dump({key: good | {'reason': '\x1b[2J\ud800' * 999}}, file)
        result, started = self.ask()
        self.assertFalse(started)
        self.assertTrue(result.reason.isprintable())
        self.assertLessEqual(len(result.reason), 600)

    def test_last_answer(self) -> None:
        """Where nothing is known now, the host's last answer is."""
        self.ask(key_facts={'boot': 'old', 'kernel': '6'})
        busy = test_probe.LibvirtError('cannot acquire state change lock')
        conn = test_probe.Connection(error=busy, starts=False)
        now = {'boot': 'new', 'kernel': '6'}

        def ask(**options: Any) -> probe.ProbeResult:
            return probe_answers.cached_run(
                conn, cache_file=self.cache_file,
                directories=[self.directory],
                **({'key_facts': now} | options))

        result = ask()
        self.assertTrue(result.runs)
        self.assertRegex(result.reason, r'answer of 20\S+, before a change '
                         'of boot, kept in .*now it is not known: .*lock')
        # What libvirt says nothing of is no other host's.
        conn.capabilities = busy
        self.assertTrue(ask(key_facts=None).runs)
        self.assertIsNone(ask(virt_type='qemu').runs)
        with mock.patch('os.uname', return_value=mock.Mock(nodename='x')):
            self.assertIsNone(ask().runs)
        # Nothing of this is kept as an answer of today.
        with open(self.cache_file) as file:
            self.assertEqual(1, len(json.load(file)))

    def test_the_later_answer(self) -> None:
        self.ask(key_facts={'boot': '1'})
        late = test_probe.Domain(test_probe.RUNNING, cpu_time=10_000_000_000)
        self.ask(late, key_facts={'boot': '2'})
        conn = test_probe.Connection(
            error=test_probe.LibvirtError('busy'), starts=False)
        self.assertIs(False, probe_answers.cached_run(
            conn, cache_file=self.cache_file, key_facts={'boot': '3'},
            directories=[self.directory]).runs)

    def test_something_else_in_its_place(self) -> None:
        os.mkfifo(self.cache_file)
        self.assertTrue(self.ask()[1])
        self.assertFalse(self.ask()[1])
        os.unlink(self.cache_file)
        os.mkdir(self.cache_file)
        self.assertTrue(self.ask()[1])
        self.assertEqual(['probe.json'], os.listdir(self.state_path))

    def test_no_directory_to_write_to(self) -> None:
        self.cache_file = os.path.join(self.state_path, 'none', 'probe.json')
        self.assertTrue(self.ask()[0].runs)

    def test_relative_path(self) -> None:
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.state_path)
        self.cache_file = 'probe.json'
        self.ask()
        self.assertFalse(self.ask()[1])
