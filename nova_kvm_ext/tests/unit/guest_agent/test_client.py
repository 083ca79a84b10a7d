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
import traceback
from typing import Any
from unittest import mock

import fixtures
import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import replies
from nova_kvm_ext.tests.unit.guest_agent import test_replies

Fault = errors.AgentFault
State = client.AgentState

XML = """<domain type='kvm' id='1'><name>one</name><devices>
<channel type='unix'><target type='virtio' name='com.redhat.spice.0'
  state='connected'/></channel>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'
  state='{}'/></channel></devices></domain>"""

# libvirt 9.0's words for what it says of an agent, with their error numbers.
NOT_CONNECTED = (86, 'Guest agent is not responding: QEMU guest agent is not '
                     'connected')
GIVEN_UP = (86, 'Guest agent is not responding: QEMU guest agent is not '
                'available due to an error')
TIMED_OUT = (86, 'Guest agent is not responding: Guest agent not available '
                 'for now')


class LibvirtError(Exception):

    def __init__(self, code: int | None, text: str, domain: int = 10) -> None:
        super().__init__(text)
        self._code, self._domain = code, domain

    def get_error_code(self) -> int | None:
        return self._code

    def get_error_domain(self) -> int:
        return self._domain


class Clock:
    """Stands for the time module; time passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class FakeGuest:
    """A domain and the agent in it, which answers as it is told.

    Replies by command: text, an exception, or a list of them to give one
    after the other (the last one for ever). A pair has the seconds it takes.
    """

    def __init__(self, clock: Clock, **replies: Any) -> None:
        self.clock = clock
        self.xml: Any = XML.format('connected')
        self.asked: list[str] = []
        self.waits: list[int] = []
        self.requests: list[dict[str, Any]] = []
        self.replies: dict[str, Any] = {
            name: test_replies.reply(value)
            for name, value in test_replies.HONEST.items()}

    def XMLDesc(self, flags: int) -> str:
        if isinstance(self.xml, Exception):
            raise self.xml
        return self.xml

    def command(self, domain: Any, text: str, seconds: int, flags: int) -> Any:
        assert domain is self and flags == 0
        assert isinstance(seconds, int) and seconds > 0
        self.requests.append(json.loads(text))
        name = self.requests[-1]['execute']
        self.asked.append(name)
        self.waits.append(seconds)
        reply = self.replies[name]
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        if isinstance(reply, tuple):
            took, reply = reply
            self.clock.now += took
        if isinstance(reply, BaseException):
            raise reply
        return reply


class ClientTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.clock = Clock()
        self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.guest_agent.client.time', self.clock))
        self.domain = FakeGuest(self.clock)
        self.agent = client.Agent(self.domain, 5, self.domain.command)

    def fails(self, what: Any, *args: Any, **kwargs: Any
              ) -> errors.AgentError:
        return self.assertRaises(errors.AgentError, what, *args, **kwargs)


class AskTestCase(ClientTestCase):

    def test_request(self):
        self.agent.set_time(5)
        self.assertEqual([{'execute': 'guest-set-time',
                           'arguments': {'time': 5}}], self.domain.requests)

    def setUp(self):
        super().setUp()
        self.domain.replies['guest-set-time'] = '{"return": {}}'

    def test_seconds_are_whole_and_never_none(self):
        """0 would not wait, and less would wait for ever."""
        for timeout in (0.2, 0, -3, 1.1, 7):
            self.agent.ask('guest-ping', replies.ping, timeout)
        self.agent.ping()
        self.assertEqual([1, 1, 1, 2, 7, 5], self.domain.waits)

    def test_longer_where_the_command_needs_it(self):
        self.agent.freeze()
        self.agent.thaw()
        self.agent.fstrim()
        self.assertEqual(
            [('guest-fsfreeze-status', 5), ('guest-fsfreeze-freeze', 60),
             ('guest-fsfreeze-thaw', 30), ('guest-fsfreeze-status', 5),
             ('guest-fstrim', 600)],
            list(zip(self.domain.asked, self.domain.waits)))

    def test_faults(self):
        refused = "internal error: unable to execute QEMU agent command " \
                  "'guest-ping': "
        for code, words, fault, acted in (
                (*NOT_CONNECTED, Fault.DISCONNECTED, False),
                (*GIVEN_UP, Fault.GIVEN_UP, False),
                (*TIMED_OUT, Fault.NO_ANSWER, True),
                (86, 'irgendwas', Fault.NO_ANSWER, True),
                (97, 'guest agent did not respond to synchronization',
                 Fault.NO_ANSWER, True),
                (112, 'timed out', Fault.NO_ANSWER, True),
                (74, 'QEMU guest agent is not configured',
                 Fault.NO_CHANNEL, False),
                (55, 'domain is not running', Fault.NO_GUEST, False),
                (42, 'Domain not found', Fault.NO_GUEST, False),
                (68, 'cannot acquire state change lock', Fault.BUSY, False),
                (1, refused + 'no', Fault.REFUSED, True),
                (113, refused + 'no', Fault.REFUSED, True),
                (1, refused + 'The command guest-ping has not been found',
                 Fault.UNSUPPORTED, True),
                (1, refused + 'Command guest-ping has been disabled: x',
                 Fault.UNSUPPORTED, True),
                (1, 'internal error: End of file from agent socket',
                 Fault.NO_ANSWER, True),
                (1, 'internal error: cannot parse json \x1b[2J',
                 Fault.NONSENSE, True),
                (38, 'No complete agent response found in 10485760 bytes',
                 Fault.NONSENSE, True),
                (29, 'operation denied', Fault.LIBVIRT, True),
                (None, 'virDomainQemuAgentCommand() failed', Fault.LIBVIRT,
                 True)):
            self.domain.replies['guest-ping'] = LibvirtError(code, words)
            error = self.fails(self.agent.ping)
            self.assertEqual((fault, acted),
                             (error.fault, error.may_have_acted), words)
            self.assertTrue(str(error).isprintable(), ascii(str(error)))

    def test_the_guests_words_make_no_fault(self):
        """A guest that says it is not connected may have frozen itself."""
        for words in (NOT_CONNECTED[1], GIVEN_UP[1], 'domain is not running'):
            self.domain.replies['guest-ping'] = LibvirtError(
                1, "internal error: unable to execute QEMU agent command "
                   f"'guest-ping': {words}")
            self.assertTrue(self.fails(self.agent.ping).may_have_acted)

    def test_a_broken_connection_is_not_the_guests(self):
        self.domain.replies['guest-ping'] = LibvirtError(
            1, 'internal error: client socket is closed', domain=7)
        error = self.fails(self.agent.ping)
        self.assertEqual(Fault.LIBVIRT, error.fault)
        self.assertTrue(error.may_have_acted)

    def test_no_utf8(self):
        """libvirt-python makes these of it."""
        for error in (SystemError('returned a result with an exception set'),
                      UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'x')):
            self.domain.replies['guest-ping'] = error
            self.assertEqual(Fault.NONSENSE,
                             self.fails(self.agent.ping).fault)

    def test_our_own_mistakes_are_not_hidden(self):
        self.domain.replies['guest-ping'] = AttributeError('x')
        self.assertRaises(AttributeError, self.agent.ping)

    def test_a_password_is_nowhere(self):
        secret = base64.b64encode(b'secret').decode()
        for reply in (LibvirtError(*TIMED_OUT), SystemError('x'), '{',
                      '{"return": 1}', LibvirtError(29, 'x')):
            self.domain.replies['guest-set-user-password'] = reply
            error = self.fails(
                self.agent.ask, 'guest-set-user-password', replies.ping,
                username='root', password=secret, crypted=False)
            said = traceback.format_exception(error)
            self.assertNotIn(
                secret, ''.join(said) + repr(error) + repr(vars(error)))


class FreezeTestCase(ClientTestCase):

    FREEZE, THAW, STATUS = ('guest-fsfreeze-freeze', 'guest-fsfreeze-thaw',
                            'guest-fsfreeze-status')

    def test_frozen(self):
        self.assertEqual(2, self.agent.freeze())
        self.assertNotIn(self.THAW, self.domain.asked)

    def test_frozen_by_another(self):
        self.domain.replies[self.STATUS] = '{"return": "frozen"}'
        error = self.fails(self.agent.freeze)
        self.assertIn('frozen already', str(error))
        self.assertFalse(error.left_frozen)
        self.assertEqual([self.STATUS], self.domain.asked)

    def test_a_dead_agent_is_sent_no_freeze(self):
        self.domain.replies[self.STATUS] = LibvirtError(*TIMED_OUT)
        self.fails(self.agent.freeze)
        self.assertEqual([self.STATUS], self.domain.asked)

    def test_failures_that_may_have_frozen_are_thawed(self):
        for reply in (LibvirtError(*TIMED_OUT), SystemError('x'), '{',
                      '{"return": "2"}', '{"return": -1}',
                      '{"error": {"class": "GenericError", "desc": "hook"}}',
                      LibvirtError(1, 'client socket is closed', 7)):
            self.domain.asked.clear()
            self.domain.replies[self.FREEZE] = reply
            error = self.fails(self.agent.freeze)
            self.assertEqual([self.STATUS, self.FREEZE, self.THAW,
                              self.STATUS], self.domain.asked)
            self.assertFalse(error.left_frozen)

    def test_failures_that_cannot_have_frozen_are_not(self):
        for code, words in (NOT_CONNECTED, GIVEN_UP, (74, 'x'), (55, 'x')):
            self.domain.asked.clear()
            self.domain.replies[self.FREEZE] = LibvirtError(code, words)
            self.assertFalse(self.fails(self.agent.freeze).left_frozen)
            self.assertEqual([self.STATUS, self.FREEZE], self.domain.asked)

    def test_a_late_freeze_is_thawed_once_the_agent_is_back(self):
        late = LibvirtError(*TIMED_OUT)
        self.domain.replies[self.FREEZE] = (60, late)
        self.domain.replies[self.THAW] = [
            (5, late), (5, late), (3, '{"return": 2}')]
        error = self.fails(self.agent.freeze)
        self.assertEqual(Fault.NO_ANSWER, error.fault)
        self.assertIn('guest-fsfreeze-freeze within 60 s', str(error))
        self.assertFalse(error.left_frozen)
        self.assertEqual(3, self.domain.asked.count(self.THAW))
        # libvirt waited each time, so there was no need to.
        self.assertEqual(0, sum(self.clock.slept))

    def test_an_agent_that_never_comes_back(self):
        self.domain.replies[self.FREEZE] = (60, LibvirtError(*TIMED_OUT))
        self.domain.replies[self.THAW] = (5, LibvirtError(*TIMED_OUT))
        started = self.clock.now
        error = self.fails(self.agent.freeze, patience=30)
        self.assertTrue(error.left_frozen)
        self.assertIn('may have been left frozen', str(error))
        self.assertLessEqual(self.clock.now - started, 60 + 30 + 5)

    def test_an_agent_that_restarts(self):
        """Refused at once, so the next try waits a little."""
        gone = LibvirtError(*NOT_CONNECTED)
        self.domain.replies[self.FREEZE] = LibvirtError(
            1, 'internal error: End of file from agent socket')
        self.domain.replies[self.THAW] = [gone] * 4 + ['{"return": 2}']
        self.assertFalse(self.fails(self.agent.freeze).left_frozen)
        self.assertEqual([client._POLL] * 4, self.clock.slept)

    def test_an_agent_that_can_neither_freeze_nor_thaw(self):
        unsupported = '{"error": {"class": "CommandNotFound", "desc": "x"}}'
        self.domain.replies[self.FREEZE] = unsupported
        self.domain.replies[self.THAW] = unsupported
        error = self.fails(self.agent.freeze, patience=0)
        self.assertEqual(Fault.UNSUPPORTED, error.fault)
        self.assertFalse(error.left_frozen)

    def test_interrupted(self):
        for interruption in (KeyboardInterrupt(), SystemExit(1)):
            self.domain.asked.clear()
            self.domain.replies[self.FREEZE] = interruption
            self.assertRaises(type(interruption), self.agent.freeze)
            self.assertEqual([self.STATUS, self.FREEZE, self.THAW,
                              self.STATUS], self.domain.asked)

    def test_interrupted_and_left_frozen(self):
        self.domain.replies[self.FREEZE] = KeyboardInterrupt()
        self.domain.replies[self.THAW] = LibvirtError(*TIMED_OUT)
        error = self.assertRaises(KeyboardInterrupt, self.agent.freeze,
                                  patience=0)
        self.assertIn('left frozen', error.__notes__[0])

    def test_thaw(self):
        self.assertEqual(2, self.agent.thaw())

    def test_a_thaw_that_is_none(self):
        self.domain.replies[self.STATUS] = '{"return": "frozen"}'
        error = self.fails(self.agent.thaw)
        self.assertTrue(error.left_frozen)

    def test_status_unknown_to_the_agent(self):
        self.domain.replies[self.STATUS] = (
            '{"error": {"class": "CommandNotFound", "desc": "x"}}')
        self.assertEqual(2, self.agent.thaw())

    def test_a_guest_that_is_gone_is_not_frozen(self):
        self.domain.replies[self.THAW] = LibvirtError(55, 'not running')
        self.assertFalse(self.fails(self.agent.thaw, patience=60).left_frozen)
        self.assertEqual([self.THAW], self.domain.asked)

    def test_one_try_without_patience(self):
        self.domain.replies[self.THAW] = LibvirtError(*TIMED_OUT)
        self.assertTrue(self.fails(self.agent.thaw).left_frozen)
        self.assertEqual([self.THAW], self.domain.asked)


class LookTestCase(ClientTestCase):

    def look(self, **kwargs: Any) -> client.AgentFacts:
        return client.look(self.domain, command=self.domain.command, **kwargs)

    def test_connected(self):
        facts = self.look()
        self.assertEqual((State.CONNECTED, '', '7.2.22', 'one', 2, 1),
                         (facts.state, facts.problem, facts.version,
                          facts.host_name, len(facts.interfaces),
                          len(facts.filesystems)))
        self.assertEqual('debian', facts.os.id)

    def test_without_details(self):
        facts = self.look(details=False)
        self.assertEqual('one', facts.host_name)
        self.assertIsNone(facts.interfaces)
        self.assertNotIn('guest-get-fsinfo', self.domain.asked)

    def test_not_asked(self):
        self.domain.xml = XML.format('disconnected')
        self.assertEqual(State.DISCONNECTED, self.look().state)
        self.domain.xml = '<domain><devices/></domain>'
        self.assertEqual(State.NO_CHANNEL, self.look().state)
        self.assertEqual([], self.domain.asked)

    def test_libvirt_waits_for_qemu(self):
        """libvirt would answer after 30 s."""
        with mock.patch.object(self.domain, 'XMLDesc') as XMLDesc, (
                mock.patch.multiple(
                    self.domain, create=True,
                    controlInfo=lambda flags: [2, 0, 5000],
                    connect=lambda: mock.Mock(
                        getLibVersion=lambda: 11_003_000))):
            error = self.fails(self.look)
        XMLDesc.assert_not_called()
        self.assertEqual(Fault.LIBVIRT, error.fault)
        self.assertIn('QEMU', str(error))
        self.assertEqual([], self.domain.asked)

    def test_frozen(self):
        self.domain.replies['guest-fsfreeze-status'] = '{"return": "frozen"}'
        facts = self.look()
        self.assertEqual((State.FROZEN, '7.2.22'),
                         (facts.state, facts.version))
        self.assertEqual(['guest-info', 'guest-fsfreeze-status'],
                         self.domain.asked)

    def test_not_answering(self):
        for reply in (LibvirtError(*TIMED_OUT), LibvirtError(*GIVEN_UP),
                      SystemError('x'), '{', LibvirtError(68, 'x')):
            self.domain.asked.clear()
            self.domain.replies['guest-info'] = reply
            facts = self.look()
            self.assertEqual(State.NOT_ANSWERING, facts.state)
            self.assertTrue(facts.problem)
            self.assertEqual(['guest-info'], self.domain.asked)

    def test_gone_meanwhile(self):
        self.domain.replies['guest-info'] = LibvirtError(*NOT_CONNECTED)
        self.assertEqual(State.DISCONNECTED, self.look().state)
        self.domain.replies['guest-info'] = LibvirtError(55, 'x')
        self.assertEqual(Fault.NO_GUEST, self.fails(self.look).fault)

    def test_hangs_in_the_middle(self):
        self.domain.replies['guest-get-host-name'] = LibvirtError(*TIMED_OUT)
        facts = self.look()
        self.assertEqual((State.NOT_ANSWERING, '7.2.22', 'debian'),
                         (facts.state, facts.version, facts.os.id))
        self.assertNotIn('guest-get-fsinfo', self.domain.asked)

    def test_ends_in_the_middle(self):
        self.domain.replies['guest-get-fsinfo'] = LibvirtError(
            1, 'client socket is closed', 7)
        self.assertEqual(Fault.LIBVIRT, self.fails(self.look).fault)
        self.domain.replies['guest-get-fsinfo'] = LibvirtError(*NOT_CONNECTED)
        facts = self.look()
        self.assertEqual((State.DISCONNECTED, 'one'),
                         (facts.state, facts.host_name))

    def test_what_an_agent_does_not_know(self):
        self.domain.replies['guest-get-osinfo'] = (
            '{"error": {"class": "CommandNotFound", "desc": "x"}}')
        facts = self.look()
        self.assertEqual((State.CONNECTED, '', None, 'one'),
                         (facts.state, facts.problem, facts.os,
                          facts.host_name))

    def test_one_lie_does_not_spoil_the_rest(self):
        self.domain.replies['guest-network-get-interfaces'] = '{"return": 1}'
        facts = self.look()
        self.assertEqual(State.CONNECTED, facts.state)
        self.assertIn('guest-network-get-interfaces', facts.problem)
        self.assertEqual(1, len(facts.filesystems))

    def test_one_budget_for_all(self):
        """A slow agent gets what is left, not as much again each time."""
        for name in test_replies.HONEST:
            self.domain.replies[name] = (1.5, self.domain.replies[name])
        started = self.clock.now
        facts = self.look(timeout=5)
        self.assertLessEqual(self.clock.now - started, 5 + 1.5)
        self.assertEqual([5, 4, 2, 1], self.domain.waits)
        self.assertIn('had not answered everything after 5 s', facts.problem)

    def test_libvirt_fails(self):
        for error in (LibvirtError(38, 'x', 7), LibvirtError(42, 'x')):
            self.domain.xml = error
            self.assertIn(self.fails(self.look).fault,
                          (Fault.LIBVIRT, Fault.NO_GUEST))
        self.domain.xml = AttributeError('x')
        self.assertRaises(AttributeError, self.look)

    @test_replies.ANYTHING
    @hypothesis.given(strategies.dictionaries(
        strategies.sampled_from(sorted(test_replies.HONEST)),
        strategies.text() | test_replies.JSON.map(test_replies.reply)))
    def test_any_replies(self, lies):
        self.domain.replies |= lies
        facts = self.look()
        for text in test_replies.texts(facts):
            self.assertTrue(text.isprintable(), ascii(text))
