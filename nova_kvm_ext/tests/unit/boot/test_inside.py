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

import base64
import json
import os
import sys
import types
from typing import Any
from unittest import mock

import fixtures
import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext.boot import inside
from nova_kvm_ext.boot import report

ANYTHING = hypothesis.settings(max_examples=200, deadline=None, database=None)
JSON = strategies.recursive(
    strategies.none() | strategies.booleans() |
    strategies.integers(-2 ** 70, 2 ** 70) |
    strategies.floats(allow_nan=False, allow_infinity=False) |
    strategies.text(max_size=20),
    lambda inner: strategies.lists(inner, max_size=4) |
    strategies.dictionaries(
        strategies.sampled_from(
            ['return', 'version', 'buf-b64', 'count', 'error']) |
        strategies.text(max_size=5), inner, max_size=4),
    max_leaves=10)

# No JSON, JSON that is no object, an object that is no answer.
NO_ANSWER = (
    None, '', '{', 'null', '42', '"return"', '[]', '["return"]', '{}',
    '{"error": {"class": "CommandNotFound", "desc": "no"}}',
    '[' * 100000, '{"return":' * 100000, '{"return": NaN',
    '{"return": %s}' % ('9' * 5000), '\x00', '\ud800',
    json.dumps({'return': 'x' * 2 ** 20}))


class LibvirtError(Exception):

    def get_error_code(self) -> int:
        return 86   # VIR_ERR_AGENT_UNRESPONSIVE


class ReadConsoleTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.path = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'console.log')

    def read(self, content: bytes) -> str:
        with open(self.path, 'wb') as f:
            f.write(content)
        return inside.read_console(self.path)

    def test_none_yet(self):
        self.assertEqual('', inside.read_console(self.path))

    def test_all_of_a_short_one(self):
        self.assertEqual('login: ', self.read(b'login: '))

    def test_no_text(self):
        self.assertEqual('a\ufffd\x1b[2J', self.read(b'a\xff\x1b[2J'))

    def test_the_newest_of_a_long_one(self):
        found = self.read(b'old' + b'x' * 1024 * 1024 + b'new')
        self.assertEqual(1024 * 1024, len(found))
        self.assertTrue(found.startswith('x'))
        self.assertTrue(found.endswith('xnew'))

    def test_one_that_never_ends_is_not_read_to_its_end(self):
        # Grows as fast as it is read, and has no size.
        self.assertEqual(1024 * 1024, len(inside.read_console('/dev/zero')))


class AgentTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.requests: list[dict[str, Any]] = []
        self.replies: dict[str, Any] = {}
        self.domain = object()
        module: Any = types.ModuleType('libvirt_qemu')
        module.qemuAgentCommand = self.qemu_agent_command
        before = sys.modules.get('libvirt_qemu')
        sys.modules['libvirt_qemu'] = module
        self.addCleanup(self.put_back, before)
        self.agent = inside.Agent(self.domain, timeout=7)

    @staticmethod
    def put_back(module):
        del sys.modules['libvirt_qemu']
        if module is not None:
            sys.modules['libvirt_qemu'] = module

    def qemu_agent_command(self, domain, request, timeout, flags):
        self.assertIs(self.domain, domain)
        self.assertEqual((7, 0), (timeout, flags))
        self.requests.append(json.loads(request))
        reply = self.replies[self.requests[-1]['execute']]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def reply(self, **replies: Any):
        """Have the guest answer with these values."""
        self.replies |= {name.replace('_', '-'): json.dumps({'return': value})
                         for name, value in replies.items()}

    def said(self, raw: Any, name: str = 'guest-info') -> Any:
        self.replies[name] = raw
        return self.agent.command(name)


class CommandTestCase(AgentTestCase):

    def test_request_and_answer(self):
        self.reply(guest_exec=[1, {'a': None}])
        self.assertEqual([1, {'a': None}],
                         self.agent.command('guest-exec', path='/bin/true'))
        self.reply(guest_info={})
        self.assertEqual({}, self.agent.command('guest-info'))
        self.assertEqual(
            [{'execute': 'guest-exec', 'arguments': {'path': '/bin/true'}},
             {'execute': 'guest-info'}], self.requests)

    def test_no_answer(self):
        self.assertIsNone(self.said(LibvirtError('not responding')))

    def test_our_own_mistakes_are_not_hidden(self):
        self.assertRaises(AttributeError, self.said, AttributeError('x'))

    def test_no_sense(self):
        for raw in NO_ANSWER:
            self.assertTrue(self.said(raw) is None, repr(raw)[:60])

    def test_an_answer_of_any_type(self):
        values: list[Any] = [0, False, '', [], {}]
        for value in values:
            self.assertEqual(value, self.said(json.dumps({'return': value})))

    def test_bound(self):
        just = json.dumps({'return': 'x' * (1024 * 1024 - 14)})
        self.assertEqual(1024 * 1024, len(just))
        # Not assertIsNotNone, which would print it all.
        self.assertTrue(self.said(just) is not None)
        self.assertTrue(self.said(just + ' ') is None)

    @ANYTHING
    @hypothesis.given(strategies.text() | JSON.map(json.dumps))
    def test_nothing_raises(self, raw):
        self.said(raw)


class PingTestCase(AgentTestCase):

    def test_answer(self):
        self.reply(guest_ping={}, guest_info={'version': '7.2.22'})
        self.assertEqual('answers to ping, version 7.2.22', self.agent.ping())

    def test_none(self):
        for raw in (LibvirtError('x'), *NO_ANSWER):
            self.replies['guest-ping'] = raw
            self.assertIsNone(self.agent.ping())
        self.assertEqual({'guest-ping'},
                         {request['execute'] for request in self.requests})

    def test_ping_alone(self):
        self.reply(guest_ping={})
        for raw in (LibvirtError('x'), *NO_ANSWER, '{"return": []}',
                    '{"return": {}}', '{"return": {"version": null}}'):
            self.replies['guest-info'] = raw
            self.assertEqual('answers to ping, version unknown',
                             self.agent.ping())

    def test_hostile_version(self):
        self.reply(guest_ping={})
        for version in ('\x1b[2J\n' + 'x' * 9999, ['\x07'] * 99, {'a': 1},
                        1e308, True, '\ud800', '\u202e'):
            self.reply(guest_info={'version': version})
            answer = self.agent.ping()
            self.assertTrue(answer.isprintable(), ascii(answer))
            self.assertLess(len(answer), 70)

    def test_deep_version(self):
        """What can just be parsed can also be printed."""
        self.reply(guest_ping={})
        limit = sys.getrecursionlimit()
        for depth in range(limit // 2, limit + 10, 7):
            self.replies['guest-info'] = '{"return": {"version": %s}}' % (
                '[' * depth + ']' * depth)
            self.assertIn('answers to ping', self.agent.ping())

    @ANYTHING
    @hypothesis.given(JSON, JSON)
    def test_nothing_raises(self, ping, info):
        self.reply(guest_ping=ping, guest_info=info)
        answer = self.agent.ping()
        self.assertEqual(ping is None, answer is None)
        self.assertTrue(answer is None or answer.isprintable())


class ReadFileTestCase(AgentTestCase):

    def setUp(self):
        super().setUp()
        self.reply(guest_file_open=1000, guest_file_close={})

    def read(self, answer: Any) -> str:
        self.reply(guest_file_read=answer)
        return self.agent.read_file('/proc/cpuinfo')

    def test_read(self):
        self.assertEqual('processor\t: 0\n\ufffd', self.read(
            {'count': 16, 'eof': True, 'buf-b64': base64.b64encode(
                b'processor\t: 0\n\xff').decode()}))
        self.assertEqual(
            [{'execute': 'guest-file-open',
              'arguments': {'path': '/proc/cpuinfo', 'mode': 'r'}},
             {'execute': 'guest-file-read',
              'arguments': {'handle': 1000, 'count': 128 * 1024}},
             {'execute': 'guest-file-close',
              'arguments': {'handle': 1000}}], self.requests)

    def test_what_is_asked_for_fits(self):
        """The reply to the largest read is not thrown away for its size."""
        self.assertEqual(128 * 1024, len(self.read(
            {'count': 128 * 1024, 'eof': False,
             'buf-b64': base64.b64encode(b'x' * 128 * 1024).decode()})))

    def test_refused(self):
        for raw in (LibvirtError('denied'), '{"error": {}}',
                    '{"return": "1000"}', '{"return": 1.5}',
                    '{"return": {}}'):
            self.requests.clear()
            self.replies['guest-file-open'] = raw
            self.assertEqual('', self.agent.read_file('/etc/shadow'))
            self.assertEqual(1, len(self.requests), str(raw))

    def test_bad_answers(self):
        answers: list[Any] = [
            None, 7, 'x', [], {}, {'buf-b64': None}, {'buf-b64': 7},
            {'buf-b64': []}, {'buf-b64': 'A'}, {'buf-b64': 'AAAAA'},
            {'buf-b64': '\u00e9\ud800'}]
        for answer in answers:
            self.requests.clear()
            self.assertEqual('', self.read(answer), ascii(answer))
            self.assertEqual('guest-file-close',
                             self.requests[-1]['execute'])

    def test_a_read_that_fails_still_closes(self):
        self.replies['guest-file-read'] = LibvirtError('timeout')
        self.assertEqual('', self.agent.read_file('/proc/cpuinfo'))
        self.assertEqual('guest-file-close', self.requests[-1]['execute'])

    @ANYTHING
    @hypothesis.given(JSON, JSON)
    def test_nothing_raises(self, handle, answer):
        self.reply(guest_file_open=handle)
        self.assertIsInstance(self.read(answer), str)


class ReportTestCase(AgentTestCase):

    FILES = {
        '/proc/cpuinfo': 'processor\t: 0\nvendor_id\t: GenuineIntel\n'
                         'model name\t: QEMU \x1b[2J\nflags\t\t: fpu sse4_2\n'
                         'processor\t: 1\n',
        '/proc/meminfo': 'MemTotal:         223376 kB\nMemFree: 1 kB\n'}

    def qemu_agent_command(self, domain, request, timeout, flags):
        reply = json.loads(request)
        if reply['execute'] == 'guest-file-open':
            self.path = reply['arguments']['path']
            value: Any = 1000
        else:
            value = {'buf-b64': base64.b64encode(
                self.FILES.get(self.path, '').encode()).decode()}
        return json.dumps({'return': value})

    def test_from_proc(self):
        found = self.agent.report()
        self.assertEqual((2, 223376, frozenset({'fpu', 'sse4_2'})),
                         (found.cpus, found.memory_kib, found.cpu_flags))
        self.assertEqual('QEMU [2J', found.cpu_model_name)
        self.assertIsNone(found.nics)

    def test_no_linux(self):
        self.FILES = dict.fromkeys(self.FILES, '')
        self.assertIsNone(self.agent.report())


class VulnerabilitiesTestCase(AgentTestCase):

    CPU = 'processor\t: 0\nvendor_id\t: GenuineIntel\n'

    def report(self, files: dict[str, str]) -> report.GuestReport | None:
        self.opened: list[str] = []

        def read(path: str) -> str:
            self.opened.append(path)
            return files.get(path, '')

        with mock.patch.object(self.agent, 'read_file', read):
            return self.agent.report()

    def test_flaws(self):
        directory = '/sys/devices/system/cpu/vulnerabilities'
        found = self.report({
            '/proc/cpuinfo': self.CPU,
            f'{directory}/gather_data_sampling': 'Not affected\n',
            f'{directory}/mds': 'Vulnerable\x1b[2J\n'})
        self.assertEqual({'gather_data_sampling': 'Not affected',
                          'mds': 'Vulnerable[2J'}, found.vulnerabilities)

    def test_a_guest_without_them_is_asked_once(self):
        found = self.report({'/proc/cpuinfo': self.CPU})
        self.assertEqual({}, found.vulnerabilities)
        self.assertEqual(3, len(self.opened))
