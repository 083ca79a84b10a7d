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

"""Parses the replies of a guest agent into frozen data.

A reply is written by the guest, and so by a tenant: it can be any text. Each
function takes a reply from libvirt and returns data in which every type is
checked, every number, count and length is limited, and every text is one
harmless line (:func:`nova_kvm_ext.errors.clean`). None raises anything but
:class:`nova_kvm_ext.errors.AgentError`, and none takes more than linear time.
Pure: sends no command to an agent.

Lists of interfaces, addresses, filesystems and disks that are too long are
truncated, and say by how much.

Unknown members are ignored, as the protocol requires. A known member with a
wrong value makes the whole reply invalid.

https://qemu-project.gitlab.io/qemu/interop/qemu-ga-ref.html
"""

from collections.abc import Callable
import dataclasses
import ipaddress
import json
import math
import re
from typing import Any
from typing import TypeVar

from nova_kvm_ext import errors

MAX_REPLY = 1024 * 1024
"""Characters (or bytes) of a reply. libvirt takes ten times as much. The
longest honest one is a list of interfaces or filesystems; of each, a thousand
take less than half of it."""

MAX_DEPTH = 16
"""Lists and objects inside each other. guest-get-fsinfo, the deepest here,
has six: reply, list, filesystem, list, disk, PCI address."""

MAX_CONTAINERS = 65536
"""Lists and objects in all. A thousand interfaces with ten addresses each
make 12,000; parsing as many as are allowed takes a tenth of a second."""

MAX_DIGITS = 24
"""Characters of one number. 2**64 has 20; Python takes quadratic time to
read a long one."""

MAX_ITEMS = 1024
"""Interfaces, filesystems or trimmed mount points that are kept. A host of
containers has some hundred of them."""

MAX_ADDRESSES = 256
"""Addresses of one interface that are kept. kube-ipvs0 of a Kubernetes node
has one for each service."""

MAX_DISKS = 64
"""Disks below one filesystem that are kept."""

MAX_COMMANDS = 512
"""Commands that an agent knows. QEMU 10 has 50."""

MAX_FROZEN = 65536
"""Filesystems that a freeze or thaw reports. A guest may mount the same one
often, and thaw counts each."""

MAX_BYTES = 2 ** 63 - 1
"""Bytes of a filesystem: what a file's size can be, and what fits where other
programs put it."""

TEXT = 256
"""Characters that are kept of a text: a host name has 64, a long mount point
or version is cut."""

# Strings are passed over whole; one that does not end reaches to the end of
# the reply, so that no character is looked at twice.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.?)*+"?|[\[\]{}]', re.DOTALL)
Item = TypeVar('Item')

_COMMAND = re.compile(r'[A-Za-z0-9_.-]{1,64}')
_MAC = re.compile(r'[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}')


@dataclasses.dataclass(frozen=True)
class Info:
    """guest-info.

    :ivar commands: names of the commands that the agent would obey now. One
        that an administrator of the guest has switched off is not among them,
        nor, while it is frozen, most others.
    """

    version: str
    commands: frozenset[str]


@dataclasses.dataclass(frozen=True)
class OSInfo:
    """guest-get-osinfo; what the guest does not say is ''."""

    id: str = ''
    name: str = ''
    pretty_name: str = ''
    version: str = ''
    version_id: str = ''
    variant: str = ''
    variant_id: str = ''
    kernel_release: str = ''
    kernel_version: str = ''
    machine: str = ''

    @property
    def title(self) -> str:
        """The system in a few words, '' where nothing is known of it."""
        return (self.pretty_name or f'{self.name} {self.version}'.strip() or
                self.id or self.kernel_release)


@dataclasses.dataclass(frozen=True)
class Interface:
    """One of guest-network-get-interfaces.

    :ivar mac: in lower case, '' where it has none
    :ivar addresses: with prefix length: ``192.0.2.1/24``, ``fe80::1/64``
    :ivar addresses_left_out: how many more it has
    """

    name: str
    mac: str
    addresses: tuple[str, ...]
    addresses_left_out: int = 0


@dataclasses.dataclass(frozen=True)
class Filesystem:
    """One of guest-get-fsinfo.

    :ivar used_bytes: None where the guest does not say
    :ivar disks: device nodes (Linux), or bus and address, of what is below
    :ivar disks_left_out: how many more there are
    """

    name: str
    mountpoint: str
    type: str
    used_bytes: int | None
    total_bytes: int | None
    disks: tuple[str, ...]
    disks_left_out: int = 0


@dataclasses.dataclass(frozen=True)
class Trimmed:
    """One mount point of guest-fstrim.

    :ivar trimmed_bytes: None where the guest does not say
    :ivar error: why it could not be trimmed, '' where it was
    """

    path: str
    trimmed_bytes: int | None
    minimum_bytes: int | None
    error: str


def returned(reply: Any, command: str) -> Any:
    """The value that a reply returns, its structure bounded.

    Text in it is still as the guest wrote it.

    :param reply: what the agent said, text or bytes
    :param command: what was asked, for the error
    :raises errors.AgentError: the agent refused, or the reply is none
    """
    value = _load(reply, command)
    if not isinstance(value, dict):
        raise _nonsense(command, 'it is not an object')
    if 'error' in value:
        raise _refusal(value['error'], command)
    if 'return' not in value:
        raise _nonsense(command, 'it has neither a value nor an error')
    return value['return']


def ping(reply: Any, command: str = 'guest-ping') -> None:
    """The reply of guest-ping, guest-set-time or another without a value."""
    if not isinstance(returned(reply, command), dict):
        raise _nonsense(command, 'a value that should be empty is not')


def info(reply: Any) -> Info:
    """The reply of guest-info."""
    found = _Object(returned(reply, 'guest-info'), 'guest-info')
    commands = found.items('supported_commands', MAX_COMMANDS)
    return Info(
        version=found.text('version'),
        commands=frozenset(
            command.matching('name', _COMMAND) for command in commands
            if command.boolean('enabled')))


def os_info(reply: Any) -> OSInfo:
    """The reply of guest-get-osinfo."""
    found = _Object(returned(reply, 'guest-get-osinfo'), 'guest-get-osinfo')
    return OSInfo(**{
        field.name: found.text(field.name.replace('_', '-'), '')
        for field in dataclasses.fields(OSInfo)})


def host_name(reply: Any) -> str:
    """The reply of guest-get-host-name."""
    return _Object(returned(reply, 'guest-get-host-name'),
                   'guest-get-host-name').text('host-name')


class Kept(tuple[Item, ...]):
    """The items of a list that are kept.

    :ivar left_out: how many more there were
    """

    left_out: int = 0


def _keep(items: list['_Object'], most: int,
          make: Callable[['_Object'], Item]) -> Kept[Item]:
    kept = Kept(map(make, items[:most]))
    kept.left_out = max(0, len(items) - most)
    return kept


def left_out(found_interfaces: tuple[Interface, ...] | None,
             found_filesystems: tuple[Filesystem, ...] | None) -> str:
    """What was cut of an agent's lists, in words; '' where nothing was."""
    cut = [(found.left_out, f'the {len(found)} {name}')
           for name, found in (('interfaces', found_interfaces),
                               ('filesystems', found_filesystems))
           if isinstance(found, Kept) and found.left_out]
    cut += [(i.addresses_left_out,
             f'the {len(i.addresses)} addresses of interface {i.name}')
            for i in found_interfaces or () if i.addresses_left_out]
    cut += [(f.disks_left_out,
             f'the {len(f.disks)} disks of filesystem {f.mountpoint}')
            for f in found_filesystems or () if f.disks_left_out]
    if not cut:
        return ''
    more = f' (and so for {len(cut) - 3} more)' if len(cut) > 3 else ''
    return 'Not shown: {}{}.'.format(', '.join(
        f'{count} more than {what}' for count, what in cut[:3]), more)


def interfaces(reply: Any) -> Kept[Interface]:
    """The reply of guest-network-get-interfaces."""
    command = 'guest-network-get-interfaces'

    def interface(item: _Object) -> Interface:
        addresses = _keep(item.items('ip-addresses', optional=True),
                          MAX_ADDRESSES, lambda i: _address(i, command))
        return Interface(
            name=item.text('name'),
            mac=item.matching('hardware-address', _MAC, '').lower(),
            addresses=tuple(addresses),
            addresses_left_out=addresses.left_out)

    return _keep(_items(returned(reply, command), command), MAX_ITEMS,
                 interface)


def filesystems(reply: Any) -> Kept[Filesystem]:
    """The reply of guest-get-fsinfo."""
    command = 'guest-get-fsinfo'

    def filesystem(item: _Object) -> Filesystem:
        disks = _keep(item.items('disk', optional=True), MAX_DISKS, _disk)
        return Filesystem(
            name=item.text('name'), mountpoint=item.text('mountpoint'),
            type=item.text('type'),
            used_bytes=item.optional_number('used-bytes', MAX_BYTES),
            total_bytes=item.optional_number('total-bytes', MAX_BYTES),
            disks=tuple(disks), disks_left_out=disks.left_out)

    return _keep(_items(returned(reply, command), command), MAX_ITEMS,
                 filesystem)


def is_frozen(reply: Any) -> bool:
    """The reply of guest-fsfreeze-status."""
    found = returned(reply, 'guest-fsfreeze-status')
    if found not in ('frozen', 'thawed') or not isinstance(found, str):
        raise _nonsense('guest-fsfreeze-status',
                        'it is neither frozen nor thawed')
    return found == 'frozen'


def frozen(reply: Any, command: str = 'guest-fsfreeze-freeze') -> int:
    """How many filesystems the reply of a freeze (or thaw) speaks of."""
    return _number(returned(reply, command), command, 'the count', MAX_FROZEN)


def thawed(reply: Any) -> int:
    """How many filesystems the reply of guest-fsfreeze-thaw speaks of."""
    return frozen(reply, 'guest-fsfreeze-thaw')


def trimmed(reply: Any) -> Kept[Trimmed]:
    """The reply of guest-fstrim; none from an agent older than 2.4."""
    found = _Object(returned(reply, 'guest-fstrim'), 'guest-fstrim')
    return _keep(
        found.items('paths', optional=True), MAX_ITEMS, lambda item: Trimmed(
            path=item.text('path'),
            trimmed_bytes=item.optional_number('trimmed', MAX_BYTES),
            minimum_bytes=item.optional_number('minimum', MAX_BYTES),
            error=item.text('error', '')))


def _nonsense(command: str, why: str) -> errors.AgentError:
    # Never with a word of the reply: `why` is ours.
    return errors.AgentError(
        f'The guest agent answered {command} with what is no answer: {why}.',
        'Check the guest: its agent is broken, or sends false answers.',
        fault=errors.AgentFault.NONSENSE)


def _refusal(error: Any, command: str) -> errors.AgentError:
    if not isinstance(error, dict):
        return _nonsense(command, 'its error is not an object')
    kind, said = error.get('class'), error.get('desc')
    if not isinstance(kind, str) or not isinstance(said, str):
        return _nonsense(command, 'its error has no class or description')
    return refused(command, said, unsupported=kind == 'CommandNotFound')


def refused(command: str, said: Any, unsupported: bool = False
            ) -> errors.AgentError:
    """The error for a command that the agent answered with an error.

    :param said: the agent's own words, as it wrote them
    :param unsupported: whether it does not know the command, or has it
        switched off
    """
    words = errors.clean(said, TEXT) or 'nothing'
    if unsupported:
        return errors.AgentError(
            f'The guest agent does not do {command}. It says: {words}',
            'A newer agent may; or allow the command in the guest (qemu-ga '
            '--blacklist, --block-rpcs or --allow-rpcs). To freeze, Windows '
            'needs the agent\'s VSS provider.'
            if 'fsfreeze' in command else
            'A newer agent may; or allow the command in the guest (qemu-ga '
            '--blacklist, --block-rpcs or --allow-rpcs).',
            fault=errors.AgentFault.UNSUPPORTED)
    return errors.AgentError(
        f'The guest agent refused {command}. It says: {words}',
        fault=errors.AgentFault.REFUSED)


def _load(reply: Any, command: str) -> Any:
    if not isinstance(reply, str | bytes):
        raise _nonsense(command, 'there is none')
    if len(reply) > MAX_REPLY:
        raise _nonsense(command, f'it is longer than {MAX_REPLY} bytes')
    try:
        text = reply if isinstance(reply, str) else reply.decode('utf-8')
    except UnicodeDecodeError:
        raise _nonsense(command, 'it is not UTF-8') from None
    _check_structure(text, command)
    try:
        return json.loads(
            text, parse_int=_parser(int), parse_float=_parser(float),
            parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except _Wrong as e:
        raise _nonsense(command, str(e)) from None
    except (ValueError, RecursionError):
        # The structure was checked, so that recursion cannot run deep unless
        # the caller is there already.
        raise _nonsense(command, 'it is not JSON') from None


class _Wrong(Exception):
    """What is wrong with a piece of JSON, in our words."""


def _check_structure(text: str, command: str) -> None:
    """Refuse what would cost too much to parse, before it is parsed."""
    depth = containers = 0
    for token in _TOKEN.finditer(text):
        # Not token[0]: a string of a megabyte need not be copied.
        first = text[token.start()]
        if first in '[{':
            depth += 1
            containers += 1
            if depth > MAX_DEPTH or containers > MAX_CONTAINERS:
                raise _nonsense(
                    command, 'it has too many lists and objects')
        elif first in ']}':
            depth -= 1


def _parser(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def parse(text: str) -> int | float:
        if len(text) > MAX_DIGITS:
            raise _Wrong('a number is too long')
        found = kind(text)
        if not math.isfinite(found):
            raise _Wrong('a number is too large')
        return found

    return parse


def _no_constant(name: str) -> None:
    raise _Wrong('a number is none')   # NaN, Infinity


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers would disagree about which one counts.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Wrong('an object has two members of the same name')
    return found


def _number(value: Any, command: str, name: str, most: int) -> int:
    # True is an int to Python.
    if not isinstance(value, int) or isinstance(value, bool):
        raise _nonsense(command, f'{name} is not an integer')
    if not 0 <= value <= most:
        raise _nonsense(command, f'{name} is out of range')
    return value


class _Object:
    """A JSON object of a reply, its members taken out by type.

    A member that is missing is an error unless a default is given; null
    counts as missing.
    """

    def __init__(self, value: Any, command: str) -> None:
        if not isinstance(value, dict):
            raise _nonsense(command, 'what should be an object is none')
        self._value = value
        self._command = command

    def _get(self, name: str, kind: type, default: Any) -> Any:
        found = self._value.get(name)
        if found is None:
            found = default
        if not isinstance(found, kind):
            raise _nonsense(self._command, f'{name} is missing or of another '
                                           f'type')
        return found

    def text(self, name: str, default: str | None = None) -> str:
        return errors.clean(self._get(name, str, default), TEXT)

    def matching(self, name: str, pattern: re.Pattern[str],
                 default: str | None = None) -> str:
        found = self._get(name, str, default)
        if found != default and not pattern.fullmatch(found):
            raise _nonsense(self._command, f'{name} is not of its form')
        return found

    def boolean(self, name: str) -> bool:
        return self._get(name, bool, None)

    def number(self, name: str, most: int) -> int:
        return _number(self._value.get(name), self._command, name, most)

    def optional_number(self, name: str, most: int) -> int | None:
        return (None if self._value.get(name) is None
                else self.number(name, most))

    def items(self, name: str, most: int = MAX_CONTAINERS,
              optional: bool = False) -> list['_Object']:
        return _items(self._get(name, list, [] if optional else None),
                      self._command, most)


def _items(value: Any, command: str, most: int = MAX_CONTAINERS
           ) -> list[_Object]:
    if not isinstance(value, list):
        raise _nonsense(command, 'what should be a list is none')
    if len(value) > most:
        raise _nonsense(command, f'a list has more than {most} items')
    return [_Object(item, command) for item in value]


def _address(item: _Object, command: str) -> str:
    # An IPv6 address may have a scope after a %, which is any text at all.
    written = item.text('ip-address')
    try:
        address = ipaddress.ip_address(written.partition('%')[0])
    except ValueError:
        raise _nonsense(command, 'an ip-address is none') from None
    prefix = item.optional_number('prefix', address.max_prefixlen)
    return f'{address}' if prefix is None else f'{address}/{prefix}'


def _disk(item: _Object) -> str:
    node = item.text('dev', '')
    if node:
        return node
    # Windows, and agents older than 4.0, have no device node.
    place = [item.optional_number(name, 2 ** 32 - 1)
             for name in ('bus', 'target', 'unit')]
    return ':'.join([item.text('bus-type', 'unknown'),
                     *('?' if n is None else str(n) for n in place)])
