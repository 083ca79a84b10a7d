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

import contextlib
import io
import json
import threading
import time
from typing import Any
from unittest import mock
import uuid

import fixtures
import libvirt
from oslotest import base
from testtools import content

from nova_kvm_ext.cmd import agent
from nova_kvm_ext.cmd import freeze
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.tests.unit.guest_agent import test_client
from nova_kvm_ext.tests.unit.guest_agent import test_replies


def libvirt_error(code: int, text: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError(text)
    # Otherwise the text is that of the last error of another test.
    error.args = (text,)
    error.err = (code, 10, text, 2, None, None, None, 0, 0)
    return error


class FakeDomain:

    def __init__(self, number: int, state: str = 'connected') -> None:
        self._number = number
        self.xml = test_client.XML.format(state)
        self.replies: dict[str, Any] = dict(test_replies.HONEST)
        self.asked: list[str] = []
        self.seconds = 0.0
        self.virstate = 1

    def name(self) -> str:
        return f'instance-{self._number:08x}'

    def UUIDString(self) -> str:
        return str(uuid.UUID(int=self._number))

    def XMLDesc(self, flags: int) -> str:
        return self.xml

    def state(self, flags: int) -> list[int]:
        return [self.virstate, 0]

    def pause(self) -> None:
        self.virstate = 3
        for name in self.replies:
            self.replies[name] = libvirt_error(55, 'domain is not running')


class FakeConnection:
    """libvirt with these domains."""

    def __init__(self, domains: list[FakeDomain]) -> None:
        self._domains = domains

    def listAllDomains(self, flags: int) -> list[FakeDomain]:
        assert flags == libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        return self._domains

    def _look_up(self, text: str, *names: str) -> FakeDomain:
        for domain in self._domains:
            if text in [getattr(domain, name)() for name in names]:
                return domain
        raise libvirt_error(42, 'Domain not found')

    def lookupByName(self, text: str) -> FakeDomain:
        return self._look_up(text, 'name')

    def lookupByUUIDString(self, text: str) -> FakeDomain:
        return self._look_up(text, 'UUIDString')


class AgentTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.domains = [FakeDomain(1)]
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0
        self.open = 0
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.cmd.base.libvirt_connection', self.connect))
        self.state_path = self.useFixture(fixtures.TempDir()).path
        self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.cmd.base.read_conf', return_value=mock.Mock(
                state_path=self.state_path, host='host')))
        self.ledger = ledger.Ledger(self.state_path, 'host')
        self.useFixture(fixtures.MockPatch(
            'libvirt_qemu.qemuAgentCommand', self.answer))
        self.useFixture(fixtures.MockPatchObject(agent.client, '_POLL', 0.01))

    @contextlib.contextmanager
    def connect(self, uri: Any, read_only: bool = False):
        self.assertFalse(read_only)   # an agent is asked by writers only
        with self.lock:
            self.open += 1
        try:
            yield FakeConnection(self.domains)
        finally:
            with self.lock:
                self.open -= 1

    def answer(self, domain: FakeDomain, request: str, seconds: int,
               flags: int) -> str:
        name = json.loads(request)['execute']
        with self.lock:
            domain.asked.append(name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        reply = domain.replies[name]
        if domain.seconds:
            time.sleep(domain.seconds)
        with self.lock:
            self.at_once -= 1
        if callable(reply):
            reply = reply()
        if isinstance(reply, Exception):
            raise reply
        return json.dumps({'return': reply})

    def run_command(self, kind: type, *arguments: str) -> int:
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        command = kind(mock.Mock(stdout=self.stdout, stderr=self.stderr), None)
        parser = command.get_parser('nova-kvm-ext agent')
        with fixtures.MonkeyPatch('sys.stderr', self.stderr):
            code = command.run(parser.parse_args(arguments))
        self.said = self.stderr.getvalue()
        self.assertEqual(0, self.open)
        return code

    def json(self, kind: type, *arguments: str) -> tuple[int, Any]:
        code = self.run_command(kind, *arguments, '-f', 'json')
        return code, json.loads(self.stdout.getvalue() or 'null')

    def dead(self, *names: str) -> None:
        """Have the guest's agent not answer these."""
        for name in names or test_replies.HONEST:
            self.domains[0].replies[name] = libvirt_error(
                *test_client.TIMED_OUT)


class FindTestCase(AgentTestCase):

    def test_names(self):
        for name in ('instance-00000001',
                     '00000000-0000-0000-0000-000000000001',
                     '00000000000000000000000000000001',
                     '00000000-0000-0000-0000-000000000001'.upper()):
            self.assertEqual(0, self.run_command(agent.Ping, name), name)

    def test_none(self):
        for name in ('instance-00000002', str(uuid.uuid4()), '\x1b[2J', ''):
            self.assertEqual(3, self.run_command(agent.Ping, name))
            self.assertTrue(self.said[:-1].isprintable())
            self.assertIn('There is no guest', self.said)

    def test_libvirt_fails(self):
        self.useFixture(fixtures.MonkeyPatch(
            f'{__name__}.FakeConnection.lookupByName',
            mock.Mock(side_effect=libvirt_error(38, 'x'))))
        self.assertEqual(3, self.run_command(agent.Ping, 'one'))


class OneGuestTestCase(AgentTestCase):

    def test_ping(self):
        code, found = self.json(agent.Ping, 'instance-00000001')
        self.assertEqual((0, True, '', 'instance-00000001'), (
            code, found['answers'], found['problem'], found['name']))

    def test_no_answer(self):
        self.dead()
        code, found = self.json(agent.Ping, 'instance-00000001',
                                '--timeout', '7')
        self.assertEqual((2, False), (code, found['answers']))
        self.assertIn('within 7 s', found['problem'])

    def test_show(self):
        code, found = self.json(agent.Show, 'instance-00000001')
        self.assertEqual(0, code)
        self.assertEqual('connected', found['state'])
        self.assertEqual('debian', found['os']['id'])
        self.assertEqual(['127.0.0.1/8', '::1/128'],
                         found['interfaces'][0]['addresses'])
        self.assertEqual(2, found['filesystems'][0]['total_bytes'])
        self.assertEqual(0, self.run_command(agent.Show, 'instance-00000001'))
        for words in ('Debian GNU/Linux 12', 'lo 00:00:00:00:00:00 127.0.0.1',
                      '/ ext4 vda1 1 B of 2 B used'):
            self.assertIn(words, self.stdout.getvalue())

    def test_show_what_is_not_well(self):
        for state, change in (
                ('disconnected', lambda: setattr(
                    self.domains[0], 'xml',
                    test_client.XML.format('disconnected'))),
                ('no channel', lambda: setattr(
                    self.domains[0], 'xml', '<domain/>'))):
            change()
            code, found = self.json(agent.Show, 'instance-00000001')
            self.assertEqual((2, state, None), (
                code, found['state'], found['interfaces']))
            self.assertEqual(
                2, self.run_command(agent.Show, 'instance-00000001'))

    def test_not_running(self):
        self.domains[0].replies['guest-info'] = libvirt_error(
            55, 'domain is not running')
        self.assertEqual(2, self.run_command(agent.Show, 'instance-00000001'))
        self.assertIn('error: The guest does not run. Start it.', self.said)

    def test_paused(self):
        self.domains[0].pause()
        for kind in (agent.Ping, agent.Show):
            code, found = self.json(kind, 'instance-00000001')
            self.assertEqual(2, code)
            self.assertIn('The guest is paused', found['problem'])
        self.assertEqual('paused', found['state'])
        self.assertEqual(2, self.run_command(freeze.Thaw, 'instance-00000001',
                                             '--timeout', '1'))
        self.assertIn('The guest is paused', self.said)
        self.assertNotIn('Start it', self.said)

    def test_agent_that_refuses_to_say_whether_it_is_frozen(self):
        """Windows without VSS, small agents, a blocked command."""
        for words in ('this feature or command is not currently supported',
                      'The command guest-fsfreeze-status has been disabled '
                      'for this instance', 'no'):
            self.domains[0].replies['guest-fsfreeze-status'] = libvirt_error(
                1, "internal error: unable to execute QEMU agent command "
                f"'guest-fsfreeze-status': {words}")
            code, found = self.json(agent.Show, 'instance-00000001')
            self.assertEqual((0, 'connected', '7.2.22', 'one'), (
                code, found['state'], found['version'], found['host_name']))
            self.assertIn('guest-fsfreeze-status', found['problem'])
            self.assertEqual(0, self.run_command(agent.List))
            self.assertEqual(0, self.run_command(freeze.Freeze,
                                                 'instance-00000001'))
            self.assertEqual(0, self.run_command(freeze.Thaw,
                                                 'instance-00000001'))

    def test_agent_without_a_version(self):
        self.domains[0].replies['guest-info'] = libvirt_error(
            1, "internal error: unable to execute QEMU agent command "
            "'guest-info': The command guest-info has not been found")
        code, found = self.json(agent.Show, 'instance-00000001')
        self.assertEqual((0, 'connected', '', 'one'), (
            code, found['state'], found['version'], found['host_name']))

    def test_hundreds_of_addresses(self):
        """kube-ipvs0 of a Kubernetes node has one for each service."""
        self.domains[0].replies['guest-network-get-interfaces'] = [
            {'name': 'kube-ipvs0', 'ip-addresses': [
                {'ip-address': f'10.96.{n // 256}.{n % 256}', 'prefix': 32,
                 'ip-address-type': 'ipv4'} for n in range(700)]}]
        code, found = self.json(agent.Show, 'instance-00000001')
        self.assertEqual((0, 'connected'), (code, found['state']))
        card, = found['interfaces']
        self.assertEqual((256, 444), (len(card['addresses']),
                                      card['addresses_left_out']))
        self.assertIn('444 more', found['problem'])
        self.run_command(agent.Show, 'instance-00000001')
        self.assertIn('444 more', ' '.join(
            self.stdout.getvalue().replace('|', ' ').split()))

    def test_thaw_in_the_middle_of_a_snapshot(self):
        entry = self.ledger.enter(self.domains[0].UUIDString(), 'snapshot')
        for name in ('instance-00000001', self.domains[0].UUIDString()):
            self.assertEqual(2, self.run_command(freeze.Thaw, name))
            self.assertIn('UTC, snapshot', self.said)
            self.assertIn('--force', self.said)
            self.assertNotIn('guest-fsfreeze-thaw', self.domains[0].asked)
        self.assertEqual(2, self.run_command(freeze.Freeze,
                                             'instance-00000001'))
        self.assertEqual([], self.domains[0].asked)
        self.assertEqual(0, self.run_command(
            freeze.Thaw, 'instance-00000001', '--force'))
        self.assertIn('guest-fsfreeze-thaw', self.domains[0].asked)
        # It is the snapshot's, which finds out.
        self.assertRaises(ledger.Held, self.ledger.take, entry.uuid)

    def test_thaw_of_one_that_was_left_behind(self):
        self.ledger.enter(self.domains[0].UUIDString(), 'snapshot').release()
        self.assertEqual(0, self.run_command(freeze.Thaw, 'instance-00000001'))
        self.assertEqual([], self.ledger.left_behind())

    def test_thaw_where_the_ledger_cannot_be_read(self):
        """A warning: what is not known refuses nothing."""
        with mock.patch.object(ledger.os, 'open',
                               side_effect=PermissionError(13, 'no')):
            self.assertEqual(0, self.run_command(freeze.Thaw,
                                                 'instance-00000001'))
        self.assertIn('is not known', self.said)

    def test_trim(self):
        code, found = self.json(agent.Trim, 'instance-00000001')
        self.assertEqual(2, code)   # one of the two could not
        self.assertEqual([('/', 4096), ('/boot', None)], [
            (row['path'], row['trimmed_bytes']) for row in found])
        self.domains[0].replies['guest-fstrim'] = {'paths': [
            {'path': '/', 'trimmed': 5 * 2 ** 30}]}
        self.assertEqual(0, self.run_command(agent.Trim, 'instance-00000001'))
        self.assertIn('5 GiB', self.stdout.getvalue())

    def test_thaw(self):
        code, found = self.json(freeze.Thaw, 'instance-00000001')
        self.assertEqual((0, 2), (code, found['thawed']))
        self.dead('guest-fsfreeze-thaw')
        self.assertEqual(2, self.run_command(
            freeze.Thaw, 'instance-00000001', '--timeout', '1'))
        self.assertGreater(
            self.domains[0].asked.count('guest-fsfreeze-thaw'), 2)

    def test_arguments(self):
        for arguments in (('x', '--timeout', '0'), ('x', '--timeout', '-1'),
                          ('x', '--timeout', '99999'), ('x', 'y'), ()):
            with fixtures.MonkeyPatch('sys.stderr', io.StringIO()):
                self.assertRaises(SystemExit, self.run_command, agent.Ping,
                                  *arguments)


class ListTestCase(AgentTestCase):

    def test_paused(self):
        """The row stays, and nothing is wrong."""
        self.domains = [FakeDomain(1), FakeDomain(2)]
        self.domains[1].pause()
        code, found = self.json(agent.List)
        self.assertEqual((0, ['connected', 'paused']), (
            code, [row['state'] for row in found]))
        self.assertIn('paused', found[1]['problem'])

    def test_states(self):
        self.domains = [FakeDomain(1), FakeDomain(2, 'disconnected'),
                        FakeDomain(3), FakeDomain(4), FakeDomain(5)]
        self.domains[2].xml = '<domain/>'
        self.domains[3].replies['guest-info'] = libvirt_error(
            *test_client.TIMED_OUT)
        self.domains[4].replies['guest-fsfreeze-status'] = 'frozen'
        code, found = self.json(agent.List)
        self.assertEqual(2, code)
        self.assertEqual(
            ['connected', 'disconnected', 'no channel', 'not answering',
             'frozen'], [row['state'] for row in found])
        self.assertEqual('7.2.22', found[0]['version'])
        self.assertEqual('one', found[0]['host_name'])
        self.assertEqual('Debian GNU/Linux', found[0]['os']['name'])
        self.assertIn('did not answer', found[3]['problem'])
        # Nothing is wrong with one that has no agent.
        self.domains = self.domains[:3]
        self.assertEqual(0, self.run_command(agent.List))
        self.assertIn('Debian GNU/Linux 12', self.stdout.getvalue())

    def test_none(self):
        self.domains = []
        self.assertEqual((0, []), self.json(agent.List))

    def test_gone_meanwhile(self):
        self.domains.append(FakeDomain(2))
        self.domains[1].replies['guest-info'] = libvirt_error(55, 'x')
        code, found = self.json(agent.List)
        self.assertEqual((0, ['instance-00000001']), (
            code, [row['name'] for row in found]))

    def test_libvirt_fails_for_one(self):
        self.domains.append(FakeDomain(2))
        self.domains[1].replies['guest-info'] = libvirt_error(29, 'denied')
        code, found = self.json(agent.List)
        self.assertEqual((3, ['connected', 'unknown']), (
            code, [row['state'] for row in found]))
        self.assertIn('denied', found[1]['problem'])

    def test_hundreds(self):
        """Some that hang delay nobody for longer than they hang."""
        hung, took, hangs = range(0, 300, 15), 0.002, 1.0
        self.domains = [FakeDomain(number) for number in range(300)]
        for domain in self.domains:
            domain.seconds = took
        for number in hung:
            self.domains[number].seconds = hangs
            self.domains[number].replies['guest-info'] = libvirt_error(
                *test_client.TIMED_OUT)
        progress = []
        started = time.monotonic()
        rows = agent.look_at_all(
            lambda: self.connect('x'), 5,
            lambda count, total: progress.append((count, total)))
        seconds = time.monotonic() - started
        self.assertEqual(
            [number in hung for number in range(300)],
            [row.state == 'not answering' for row in rows])
        self.assertEqual([(n + 1, 300) for n in range(300)], progress)
        self.assertEqual(0, self.open)
        # Never more: libvirt has twenty workers, and Nova needs some.
        self.assertLessEqual(self.most_at_once, 10)
        self.assertGreater(self.most_at_once, 5)
        # One after the other they take 21 s. At once they take 2.3 s here, and
        # more where the machine is busy.
        self.addDetail('seconds', content.text_content(str(seconds)))
        self.assertLess(seconds, len(hung) * hangs / 2)

    def test_progress(self):
        self.useFixture(fixtures.MockPatchObject(agent, '_PROGRESS', 0))
        self.domains = [FakeDomain(number) for number in range(3)]
        code, found = self.json(agent.List)
        self.assertEqual(3, len(found))
        self.assertIn('1 of 3 guests asked', self.said)
        self.assertNotIn('asked', self.stdout.getvalue())
