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

"""Sends commands to the agent of a running guest, always with a time limit.

Takes a libvirt domain, or Nova's proxy of one;
:mod:`nova_kvm_ext.guest_agent.replies` parses every reply. Every failure, in
the guest or in libvirt, is an :class:`nova_kvm_ext.errors.AgentError`. Starts
no thread and keeps nothing between calls.

What libvirt does, as seen with 9.0 and read in its ``qemu_agent.c``:

* One command at a time is sent to an agent. A second caller waits for the
  first, 30 s at most.
* After a command that was not answered in time, libvirt sends ``guest-sync``
  before the next command, and waits for its answer. Late replies are dropped
  meanwhile. This wait is not part of the command's own time-out: it is 5 s, or
  virDomainAgentSetResponseTimeout() if that is shorter, and with libvirt 11.3
  the command's own time-out if that is shorter.
* After a reply that is not JSON, has an object with two members of the same
  name, or is longer than 10 MiB, libvirt does not use the channel until
  something in the guest opens it again, or libvirt is restarted.
* virDomainQemuAgentCommand() marks the domain once as tainted,
  "custom-ga-command". This only means that libvirt did not choose the command.
"""

from collections.abc import Callable
import dataclasses
import json
import math
import time
from typing import Any
from typing import TypeVar

from lxml import etree

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.guest_agent import replies
from nova_kvm_ext import live_xml
from nova_kvm_ext.words import AgentState

FREEZE_TIMEOUT = 60
"""Seconds for a freeze. It writes out what the guest has in its cache, and
runs the hooks of databases. Windows gives its writers 60 s."""

THAW_TIMEOUT = 30
"""Seconds for one thaw. It runs the same hooks, and writes nothing."""

TRIM_TIMEOUT = 600
"""Seconds for fstrim: the storage below may take minutes to free terabytes.
It is not stopped by the time-out, only no longer waited for."""

_POLL = 0.5
"""Seconds between two thaws where libvirt refuses to send the first."""

# libvirt's virErrorNumber. The module itself is Nova's to import here.
_NO_DOMAIN = 42
_OPERATION_INVALID = 55            # the domain does not run
_OPERATION_TIMEOUT = 68            # another command has the agent
_ARGUMENT_UNSUPPORTED = 74         # no channel
_AGENT_UNRESPONSIVE = 86
_AGENT_UNSYNCED = 97
_AGENT_COMMAND_TIMEOUT = 112       # libvirt 11.2
_AGENT_COMMAND_FAILED = 113        # libvirt 11.2
NO_ANSWER = (_AGENT_UNRESPONSIVE, _AGENT_UNSYNCED, _AGENT_COMMAND_TIMEOUT)
_INTERNAL_ERROR = 1
_SYSTEM_ERROR = 38
# libvirt's virDomainState: what is said of the guest, and what to do.
_STANDING_STILL = {
    3: ('is paused',               # VIR_DOMAIN_PAUSED
        'Resume it: openstack server unpause or resume; an error of its disk '
        'or a migration pauses a guest, too.'),
    7: ('sleeps (suspended by its own system)',   # VIR_DOMAIN_PMSUSPENDED
        'Wake it: virsh dompmwakeup.'),
}
_FROM_RPC = 7                      # virErrorDomain: the connection to libvirt

_REFUSALS = (errors.AgentFault.UNSUPPORTED, errors.AgentFault.REFUSED)
"""The agent is there, and does not do what it was asked."""

Answer = TypeVar('Answer')
Command = Callable[[Any, str, int, int], Any]
"""libvirt_qemu.qemuAgentCommand, or a proxy of it: the domain, the request,
seconds, flags."""


@dataclasses.dataclass(frozen=True)
class AgentFacts:
    """What is known of an agent and, by its word alone, of its guest.

    :ivar problem: why it is not answering, or what it did not say; '' where
        there is none
    :ivar version: of the agent, '' where unknown
    :ivar os: None where unknown, as are the others
    """

    state: AgentState
    problem: str = ''
    version: str = ''
    os: replies.OSInfo | None = None
    host_name: str | None = None
    interfaces: tuple[replies.Interface, ...] | None = None
    filesystems: tuple[replies.Filesystem, ...] | None = None


class Agent:
    """The agent of one running domain.

    Each method takes at most its time-out, and what the module's docstring
    says of ``guest-sync`` and of other callers.

    :param domain: a libvirt.virDomain, or a proxy of one
    :param timeout: seconds for a command that takes no time of its own
    :param command: where libvirt must not be called directly: under
        eventlet, ``host._wrap_libvirt_proxy(libvirt_qemu).qemuAgentCommand``
        with Nova's Host
    """

    def __init__(self, domain: Any, timeout: float = 5,
                 command: Command | None = None) -> None:
        self._domain = domain
        self._timeout = timeout
        self._command = command

    def ask(self, name: str, parse: Callable[[Any], Answer],
            timeout: float | None = None, **arguments: Any) -> Answer:
        """Give a command.

        :param parse: of :mod:`replies`, for this command
        :param timeout: seconds for this command; whole ones, for libvirt
        :raises errors.AgentError: no answer, a refusal, or an invalid answer
        """
        request: dict[str, Any] = {'execute': name}
        if arguments:
            request['arguments'] = {key.replace('_', '-'): value
                                    for key, value in arguments.items()}
        seconds = self._timeout if timeout is None else timeout
        try:
            reply = self._send(json.dumps(request), seconds)
        except Exception as e:
            # libvirt's errors; and of a reply or an error message that is no
            # UTF-8 libvirt-python makes a SystemError or a ValueError. What
            # else there is would be our defect.
            if not (hasattr(e, 'get_error_code') or
                    isinstance(e, SystemError | ValueError)):
                raise
            failure = _failure(e, name, seconds)
            if failure.fault is errors.AgentFault.NO_GUEST:
                failure = _standing_still(self._domain) or failure
            # Its text may have any part of the reply: no "from e".
            raise failure from None
        return parse(reply)

    def _send(self, request: str, seconds: float) -> Any:
        command = self._command
        if command is None:
            import libvirt_qemu
            command = libvirt_qemu.qemuAgentCommand
        # libvirt takes 0 for "do not wait" and less for "wait for ever".
        return command(self._domain, request, max(1, math.ceil(seconds)), 0)

    def ping(self) -> None:
        """Have the agent say that it is there."""
        self.ask('guest-ping', replies.ping)

    def info(self, timeout: float | None = None) -> replies.Info:
        """The agent's version and commands. Answered when frozen, too."""
        return self.ask('guest-info', replies.info, timeout)

    def is_frozen(self, timeout: float | None = None) -> bool:
        """Whether the agent has frozen the guest, by the agent's word."""
        return self.ask('guest-fsfreeze-status', replies.is_frozen, timeout)

    def says_frozen(self, timeout: float | None = None) -> bool | None:
        """:meth:`is_frozen`, or None where the agent refuses to say.

        Windows without its volume shadow copy service does, and agents of
        which an administrator has blocked the command.

        :raises errors.AgentError: no answer at all
        """
        try:
            return self.is_frozen(timeout)
        except errors.AgentError as e:
            if e.fault in _REFUSALS:
                return None
            raise

    def set_time(self, nanoseconds: int) -> None:
        """Set the guest's clock.

        :param nanoseconds: since 1970, UTC
        """
        self.ask('guest-set-time',
                 lambda reply: replies.ping(reply, 'guest-set-time'),
                 time=nanoseconds)

    def fstrim(self, minimum: int = 0, timeout: float = TRIM_TIMEOUT
               ) -> replies.Kept[replies.Trimmed]:
        """Have the guest give back the blocks that its filesystems left.

        :param minimum: bytes; shorter free ranges are left alone
        """
        return self.ask('guest-fstrim', replies.trimmed, timeout,
                        minimum=minimum)

    def freeze(self, timeout: float = FREEZE_TIMEOUT,
               patience: float = FREEZE_TIMEOUT) -> int:
        """Freeze the guest's filesystems. The caller must thaw them.

        Where the freeze fails, or this is interrupted, and the guest may be
        frozen anyway, it is thawed before this ends. A guest that is
        frozen already, for another's snapshot perhaps, is left as it is.

        :param patience: seconds in which that thaw is tried again
        :returns: how many filesystems are frozen, 0 where none can be
        :raises errors.AgentError: not frozen; its ``left_frozen`` says that
            the guest may be frozen and could not be thawed
        """
        if self.says_frozen():
            raise errors.AgentError(
                'The guest is frozen already.',
                'Wait for the program that froze it, or thaw it.',
                fault=errors.AgentFault.REFUSED)
        try:
            return self.ask('guest-fsfreeze-freeze', replies.frozen, timeout)
        except errors.AgentError as e:
            if not e.may_have_acted:
                raise
            raise self._undone(e, patience) from None
        except BaseException as e:
            # Ctrl-C, the end of the service: the freeze was on its way.
            undone = self._undone(None, patience)
            if undone.left_frozen:
                e.add_note(str(undone))
            raise

    def _undone(self, error: errors.AgentError | None, patience: float
                ) -> errors.AgentError:
        """Thaw after a freeze that failed: the failure, and what became."""
        problem = '' if error is None else error.problem
        remedy = '' if error is None else error.remedy
        fault = errors.AgentFault.NO_ANSWER if error is None else error.fault
        try:
            self.thaw(patience=patience)
        except errors.AgentError as e:
            # "There is nothing to thaw, for I cannot freeze" is an answer.
            if error is None or {error.fault, e.fault} != {
                    errors.AgentFault.UNSUPPORTED}:
                return errors.AgentError(
                    f'{problem} The guest may have been left frozen: '
                    f'{e.problem}'.strip(), e.remedy, fault=fault,
                    left_frozen=True)
        return errors.AgentError(problem, remedy, fault=fault)

    def thaw(self, timeout: float = THAW_TIMEOUT, patience: float = 0) -> int:
        """Thaw what is frozen; on a guest that is not frozen, do nothing.

        An agent that is still at a late freeze hears of no other command
        before it has answered the freeze, so a thaw may have to be tried again
        (each time libvirt waits, this does not).

        :param timeout: seconds for each try
        :param patience: seconds after which no other try is made
        :returns: how many filesystems it thawed
        :raises errors.AgentError: the guest may still be frozen
            (``left_frozen``), unless it does not run or has no channel
        """
        until = time.monotonic() + patience
        while True:
            started = time.monotonic()
            try:
                return self._thaw_once(timeout)
            except errors.AgentError as e:
                e.left_frozen = e.fault not in (
                    errors.AgentFault.NO_GUEST, errors.AgentFault.NO_CHANNEL)
                if not e.left_frozen or time.monotonic() >= until:
                    raise
            # Where libvirt refuses at once there is nothing to wait in.
            time.sleep(max(0, min(started + _POLL, until) - time.monotonic()))

    def _thaw_once(self, timeout: float) -> int:
        count = self.ask('guest-fsfreeze-thaw', replies.thawed, timeout)
        if self.says_frozen():
            raise errors.AgentError(
                'The guest agent answered the thaw, and says that the guest '
                'is still frozen.', 'Thaw it again.',
                fault=errors.AgentFault.REFUSED)
        return count


def look(domain: Any, timeout: float = 5, details: bool = True,
         command: Command | None = None) -> AgentFacts:
    """All that the agent of a running domain can tell, in a bounded time.

    A guest without a channel, or with no agent connected to it, is not asked.

    :param timeout: seconds for all of it together
    :param details: whether interfaces and filesystems are asked for too
    :param command: as for :class:`Agent`
    :raises errors.AgentError: the domain does not run, or libvirt failed, or
        waits for the guest's QEMU
    """
    until = time.monotonic() + timeout
    connected = _channel(domain)
    if connected is None:
        return AgentFacts(AgentState.NO_CHANNEL,
                          'The guest has no agent channel.')
    if not connected:
        return AgentFacts(AgentState.DISCONNECTED,
                          'No program in the guest has the channel open.')
    agent = Agent(domain, timeout, command)

    def left() -> float:
        return until - time.monotonic()

    found: dict[str, Any] = {}
    version = problem = ''
    # Agents that do not know one of the two, or of which it is blocked, are
    # connected all the same.
    try:
        version = agent.info(left()).version
    except errors.AgentError as e:
        if e.fault not in _REFUSALS:
            return _no_answer(e)
        problem = str(e)
    try:
        if agent.is_frozen(left()):
            # It would refuse to say more.
            return AgentFacts(AgentState.FROZEN,
                              'The filesystems are frozen.', version)
    except errors.AgentError as e:
        if e.fault not in _REFUSALS:
            return dataclasses.replace(_no_answer(e), version=version)
        problem = problem or str(e)
    for name, request, parse in (
            ('os', 'guest-get-osinfo', replies.os_info),
            ('host_name', 'guest-get-host-name', replies.host_name),
            ('interfaces', 'guest-network-get-interfaces',
             replies.interfaces),
            ('filesystems', 'guest-get-fsinfo', replies.filesystems)):
        if name in ('interfaces', 'filesystems') and not details:
            continue
        if left() <= 0:
            problem = problem or (
                'The guest agent had not answered everything after '
                f'{timeout:g} s.')
            break
        try:
            found[name] = agent.ask(request, parse, left())
        except errors.AgentError as e:
            if e.fault is errors.AgentFault.UNSUPPORTED:
                continue
            if e.fault not in (errors.AgentFault.REFUSED,
                               errors.AgentFault.NONSENSE):
                return dataclasses.replace(
                    _no_answer(e), version=version, **found)
            problem = problem or str(e)
    return AgentFacts(
        AgentState.CONNECTED, ' '.join(filter(None, (
            problem, replies.left_out(found.get('interfaces'),
                                      found.get('filesystems'))))),
        version, **found)


def _channel(domain: Any) -> bool | None:
    try:
        xml = live_xml.read(domain)
        if xml is None:
            raise errors.AgentError(
                'libvirt waits for an answer of the guest\'s QEMU, so the '
                'agent channel is not known.', 'See the log of the guest\'s '
                'QEMU, and what its process waits for.',
                fault=errors.AgentFault.LIBVIRT)
        return channel.connected(xml)
    except etree.XMLSyntaxError as e:
        raise _failure(e, 'the XML of the domain', 0) from None
    except Exception as e:
        # Only libvirt's own: what else there is would be our defect, or an
        # error of this project.
        if not hasattr(e, 'get_error_code'):
            raise
        raise _failure(e, 'the XML of the domain', 0) from None


def _no_answer(error: errors.AgentError) -> AgentFacts:
    """What an error says of the agent: only some are the guest's doing."""
    if error.fault in (errors.AgentFault.NO_GUEST, errors.AgentFault.LIBVIRT):
        raise error
    state = {
        errors.AgentFault.NO_CHANNEL: AgentState.NO_CHANNEL,
        errors.AgentFault.DISCONNECTED: AgentState.DISCONNECTED,
        errors.AgentFault.PAUSED: AgentState.PAUSED,
    }.get(error.fault, AgentState.NOT_ANSWERING)
    return AgentFacts(state, str(error))


def _standing_still(domain: Any) -> errors.AgentError | None:
    """The error for a guest that is there and does not run now.

    libvirt says of it, too, that it is not running.

    :returns: None where the guest is off or gone
    """
    # What stands for libvirt in Nova's own tests may have no such call.
    get_state = getattr(domain, 'state', None)
    if get_state is None:
        return None
    try:
        state, _ = get_state(0)
    except Exception as e:
        # Only libvirt's own: what else there is would be our defect.
        if not hasattr(e, 'get_error_code'):
            raise
        return None
    if state not in _STANDING_STILL:
        return None
    words, remedy = _STANDING_STILL[state]
    return errors.AgentError(
        f'The guest {words}, so its agent is not asked.', remedy,
        fault=errors.AgentFault.PAUSED)


def _failure(error: Exception, name: str, seconds: float
             ) -> errors.AgentError:
    """What an exception of libvirt means.

    libvirt's words are taken where the guest cannot have written them; in
    another language than English the fault is the safe one, NO_ANSWER.
    """
    fault = errors.AgentFault
    code = errors.libvirt_error_code(error)
    get_domain = getattr(error, 'get_error_domain', None)
    words = str(error)
    if not hasattr(error, 'get_error_code'):
        return errors.AgentError(
            f'The guest agent\'s answer to {name} cannot be read '
            f'({type(error).__name__}).',
            'Check the guest: its agent is broken, or sends false answers.',
            fault=fault.NONSENSE)
    if get_domain is not None and get_domain() == _FROM_RPC:
        return errors.AgentError(
            f'The connection to libvirt broke: {errors.clean(error)}',
            fault=fault.LIBVIRT)
    if code in (_NO_DOMAIN, _OPERATION_INVALID):
        return errors.AgentError(
            'The guest does not run.', 'Start it.', fault=fault.NO_GUEST)
    if code == _ARGUMENT_UNSUPPORTED:
        return errors.AgentError(
            'The guest has no agent channel.',
            'Give its image hw_qemu_guest_agent=yes and build the instance '
            'again.', fault=fault.NO_CHANNEL)
    if code == _OPERATION_TIMEOUT:
        return errors.AgentError(
            f'libvirt did not send {name}: another command to the same agent '
            f'has not ended.', 'Try again.', fault=fault.BUSY)
    if code == _AGENT_UNRESPONSIVE and 'agent is not connected' in words:
        return errors.AgentError(
            'No program in the guest has the agent channel open.',
            'Install and start qemu-guest-agent in the guest.',
            fault=fault.DISCONNECTED)
    if code == _AGENT_UNRESPONSIVE and 'not available due to an error' in (
            words):
        return errors.AgentError(
            'libvirt has given up the channel, because something in the guest '
            'wrote invalid data to it.',
            'Restart the agent in the guest, or libvirt.',
            fault=fault.GIVEN_UP)
    if code in NO_ANSWER:
        return errors.AgentError(
            f'The guest agent did not answer {name} within {seconds:g} s.',
            'Check whether qemu-guest-agent hangs in the guest.',
            fault=fault.NO_ANSWER)
    # From here on the words may be the guest's.
    refused = "unable to execute QEMU agent command '"
    if code in (_INTERNAL_ERROR, _AGENT_COMMAND_FAILED) and refused in words:
        said = words.partition(refused)[2].partition("'")[2].lstrip(': ')
        return replies.refused(
            name, said, unsupported=any(words in said for words in (
                'has not been found', 'has been disabled',
                # QEMU's QERR_UNSUPPORTED: Windows without VSS, for example.
                'not currently supported')))
    if code == _INTERNAL_ERROR and 'End of file from agent socket' in words:
        return errors.AgentError(
            f'The guest agent went away at {name}.',
            'Check whether qemu-guest-agent died in the guest.',
            fault=fault.NO_ANSWER)
    if code in (_INTERNAL_ERROR, _SYSTEM_ERROR):
        return errors.AgentError(
            f'libvirt could not read the guest agent\'s answer to {name}: '
            f'{errors.clean(words, 120)}',
            'Check the guest: its agent is broken, or sends false answers.',
            fault=fault.NONSENSE)
    return errors.AgentError(
        f'libvirt failed at {name}: {errors.clean(words)}',
        fault=fault.LIBVIRT)
