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

import json
import time
from typing import Any

import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import replies

ANYTHING = hypothesis.settings(max_examples=300, deadline=None, database=None)

PARSERS = {
    'guest-ping': replies.ping,
    'guest-info': replies.info,
    'guest-get-osinfo': replies.os_info,
    'guest-get-host-name': replies.host_name,
    'guest-network-get-interfaces': replies.interfaces,
    'guest-get-fsinfo': replies.filesystems,
    'guest-fsfreeze-status': replies.is_frozen,
    'guest-fsfreeze-freeze': replies.frozen,
    'guest-fsfreeze-thaw': replies.thawed,
    'guest-fstrim': replies.trimmed,
}

# What QEMU 7.2's qemu-ga says on Linux, shortened.
HONEST: dict[str, Any] = {
    'guest-ping': {},
    'guest-info': {
        'version': '7.2.22', 'supported_commands': [
            {'enabled': True, 'name': 'guest-ping', 'success-response': True},
            {'enabled': False, 'name': 'guest-exec',
             'success-response': True}]},
    'guest-get-osinfo': {
        'name': 'Debian GNU/Linux', 'kernel-release': '6.1.0-18-amd64',
        'version': '12 (bookworm)', 'pretty-name': 'Debian GNU/Linux 12',
        'version-id': '12', 'kernel-version': '#1 SMP', 'machine': 'x86_64',
        'id': 'debian'},
    'guest-get-host-name': {'host-name': 'one'},
    'guest-network-get-interfaces': [
        {'name': 'lo', 'hardware-address': '00:00:00:00:00:00',
         'ip-addresses': [
             {'ip-address-type': 'ipv4', 'ip-address': '127.0.0.1',
              'prefix': 8},
             {'ip-address-type': 'ipv6', 'ip-address': '::1',
              'prefix': 128}],
         'statistics': {'rx-bytes': 1}},
        {'name': 'tun0'}],
    'guest-get-fsinfo': [
        {'name': 'vda1', 'mountpoint': '/', 'type': 'ext4',
         'used-bytes': 1, 'total-bytes': 2, 'disk': [
             {'bus-type': 'virtio', 'bus': 0, 'unit': 0, 'target': 0,
              'dev': '/dev/vda1', 'serial': 'x', 'pci-controller': {
                  'bus': 0, 'slot': 4, 'domain': 0, 'function': 0}},
             {'bus-type': 'scsi', 'bus': 0, 'unit': 3, 'target': 1}]}],
    'guest-fsfreeze-status': 'thawed',
    'guest-fsfreeze-freeze': 2,
    'guest-fsfreeze-thaw': 2,
    'guest-fstrim': {'paths': [
        {'path': '/', 'minimum': 0, 'trimmed': 4096},
        {'path': '/boot', 'error': 'trim not supported'}]},
}

# The names that the parsers look for, where a liar would put other things.
NAMES = strategies.sampled_from(sorted({
    'return', 'error', 'class', 'desc', 'version', 'supported_commands',
    'name', 'enabled', 'host-name', 'pretty-name', 'hardware-address',
    'ip-addresses', 'ip-address', 'prefix', 'mountpoint', 'type', 'disk',
    'used-bytes', 'total-bytes', 'dev', 'bus', 'bus-type', 'unit', 'target',
    'paths', 'path', 'trimmed', 'minimum'}))
SCALARS = (
    strategies.none() | strategies.booleans() |
    strategies.integers(-2 ** 70, 2 ** 70) | strategies.floats() |
    strategies.text(max_size=20) |
    strategies.sampled_from(['frozen', 'thawed', '127.0.0.1', 'fe80::1%\x1b[',
                             '52:54:00:aa:bb:cc', '\u202e', '\ud800']))
JSON = strategies.recursive(
    SCALARS,
    lambda inner: strategies.lists(inner, max_size=4) |
    strategies.dictionaries(NAMES | strategies.text(max_size=5), inner,
                            max_size=6),
    max_leaves=20)


def reply(value: Any) -> str:
    return json.dumps({'return': value})


def texts(value: Any) -> list[str]:
    """Every text in what a parser gave."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, tuple | list | frozenset):
        return [text for item in value for text in texts(item)]
    if hasattr(value, '__dataclass_fields__'):
        return texts([getattr(value, name)
                      for name in value.__dataclass_fields__])
    return []


def changed(value: Any, draw: Any) -> Any:
    """An honest value with one thing of it put wrong."""
    if isinstance(value, dict) and value:
        name = draw(strategies.sampled_from(sorted(value)))
        return value | {name: changed(value[name], draw)}
    if isinstance(value, list) and value:
        index = draw(strategies.integers(0, len(value) - 1))
        return [changed(item, draw) if i == index else item
                for i, item in enumerate(value)]
    return draw(JSON)


class RepliesTestCase(base.BaseTestCase):

    def parse(self, command: str, raw: Any) -> Any:
        """What a parser makes of it: harmless, or an AgentError."""
        try:
            found = PARSERS[command](raw)
        except errors.AgentError as e:
            self.assertTrue(str(e).isprintable(), ascii(str(e)))
            self.assertLess(len(str(e)), 700)
            return e
        for text in texts(found):
            self.assertTrue(text.isprintable(), ascii(text))
            self.assertLessEqual(len(text), replies.TEXT)
        return found

    def nonsense(self, command: str, raw: Any) -> None:
        found = self.parse(command, raw)
        self.assertIsInstance(found, errors.AgentError)
        self.assertEqual(errors.AgentFault.NONSENSE, found.fault)


class HonestTestCase(RepliesTestCase):

    def said(self, command: str) -> Any:
        return PARSERS[command](reply(HONEST[command]))

    def test_bytes_and_text(self):
        for command, value in HONEST.items():
            self.assertEqual(self.said(command),
                             PARSERS[command](reply(value).encode()))

    def test_info(self):
        self.assertEqual(
            replies.Info('7.2.22', frozenset({'guest-ping'})),
            self.said('guest-info'))

    def test_os(self):
        found = self.said('guest-get-osinfo')
        self.assertEqual('6.1.0-18-amd64', found.kernel_release)
        self.assertEqual('', found.variant)
        self.assertEqual('Debian GNU/Linux 12', found.title)
        self.assertEqual('', replies.os_info(reply({})).title)
        self.assertEqual('a 1', replies.os_info(
            reply({'name': 'a', 'version': '1'})).title)

    def test_host_name(self):
        self.assertEqual('one', self.said('guest-get-host-name'))

    def test_interfaces(self):
        self.assertEqual(
            (replies.Interface('lo', '00:00:00:00:00:00',
                               ('127.0.0.1/8', '::1/128')),
             replies.Interface('tun0', '', ())),
            self.said('guest-network-get-interfaces'))

    def test_filesystems(self):
        self.assertEqual(
            (replies.Filesystem('vda1', '/', 'ext4', 1, 2,
                                ('/dev/vda1', 'scsi:0:1:3')),),
            self.said('guest-get-fsinfo'))

    def test_freeze(self):
        self.assertFalse(self.said('guest-fsfreeze-status'))
        self.assertTrue(replies.is_frozen(reply('frozen')))
        self.assertEqual(2, self.said('guest-fsfreeze-freeze'))
        self.assertEqual(2, self.said('guest-fsfreeze-thaw'))

    def test_trim(self):
        self.assertEqual(
            (replies.Trimmed('/', 4096, 0, ''),
             replies.Trimmed('/boot', None, None, 'trim not supported')),
            self.said('guest-fstrim'))
        self.assertEqual((), replies.trimmed(reply({})))

    def test_as_many_as_there_may_be(self):
        """The bounds let the largest honest guests through."""
        interface = HONEST['guest-network-get-interfaces'][0]
        self.assertEqual(1024, len(replies.interfaces(
            reply([interface] * 1024))))
        self.assertEqual(1024, len(replies.filesystems(
            reply(HONEST['guest-get-fsinfo'] * 1024))))


class RefusedTestCase(RepliesTestCase):

    def refused(self, kind: Any, said: Any) -> errors.AgentError:
        return self.parse('guest-ping', json.dumps(
            {'error': {'class': kind, 'desc': said}}))

    def test_the_agents_words(self):
        error = self.refused('GenericError', 'no \x1b[31m\u202e\nway')
        self.assertEqual(errors.AgentFault.REFUSED, error.fault)
        self.assertIn('refused guest-ping. It says: no [31m way', str(error))

    def test_unsupported(self):
        error = self.refused('CommandNotFound', 'not found')
        self.assertEqual(errors.AgentFault.UNSUPPORTED, error.fault)
        self.assertIn('--allow-rpcs', error.remedy)

    def test_no_error_either(self):
        for kind, said in ((None, 'x'), ('x', None), (1, 'x'), ('x', [])):
            self.assertEqual(errors.AgentFault.NONSENSE,
                             self.refused(kind, said).fault)
        self.nonsense('guest-ping', '{"error": "no"}')

    def test_it_may_have_acted_all_the_same(self):
        """The guest writes the refusal: it proves nothing."""
        self.assertTrue(self.refused('CommandNotFound', 'x').may_have_acted)


class HostileTestCase(RepliesTestCase):

    def test_no_reply(self):
        none: tuple[Any, ...] = (
            None, 0, [], {}, '', b'', '{', 'null', '42', '"return"', '[]',
            '{}', '{"return"', '\x00', '\ud800', b'\xff\xfe',
            b'{"return": "\xff"}', '{"return": NaN}', '{"return": Infinity}',
            '{"return": 1e999}')
        for raw in none:
            for command in PARSERS:
                self.nonsense(command, raw)

    def test_duplicate_members(self):
        self.nonsense('guest-fsfreeze-status',
                      '{"return": "frozen", "return": "thawed"}')
        self.nonsense('guest-ping', '{"return": {"a": 1, "\\u0061": 2}}')

    def test_depth(self):
        deepest = replies.MAX_DEPTH - 2
        self.parse('guest-ping', '{"return": {"x": %s}}' % (
            '[' * deepest + ']' * deepest))
        replies.ping('{"return": {"x": %s}}' % (
            '[' * deepest + ']' * deepest))
        deepest += 1
        self.nonsense('guest-ping', '{"return": {"x": %s}}' % (
            '[' * deepest + ']' * deepest))

    def test_brackets_in_text_are_no_depth(self):
        self.assertEqual('[' * 200, replies.host_name(
            reply({'host-name': '[' * 200})))
        self.assertEqual('\\"[[[[[[[[[[[[[[[[[[[[', replies.host_name(
            reply({'host-name': '\\"' + '[' * 20})))

    def test_numbers(self):
        for number in ('9' * 25, '1' * 5000, '-1', '65537', '1.0', '1e3',
                       'true', '"1"', 'null', '[]'):
            self.nonsense('guest-fsfreeze-freeze', '{"return": %s}' % number)
        self.assertEqual(65536, replies.frozen('{"return": 65536}'))
        filesystem = HONEST['guest-get-fsinfo'][0]
        for size in (-1, 2 ** 63, True, 1.5, '1'):
            self.nonsense('guest-get-fsinfo',
                          reply([filesystem | {'used-bytes': size}]))

    def test_counts(self):
        self.nonsense('guest-info', reply({
            'version': 'x', 'supported_commands':
            [{'name': f'a{i}', 'enabled': True} for i in range(513)]}))

    def test_a_filesystem_without_disks(self):
        """As an overlay, and as old agents tell of all."""
        found, = replies.filesystems(reply([
            {'name': 'a', 'mountpoint': '/a', 'type': 'tmpfs'}]))
        self.assertEqual(((), 0, None), (
            found.disks, found.disks_left_out, found.used_bytes))

    def test_the_largest_numbers(self):
        filesystem = HONEST['guest-get-fsinfo'][0] | {
            'used-bytes': 2 ** 63 - 1, 'total-bytes': 2 ** 63 - 1}
        found, = replies.filesystems(reply([filesystem]))
        self.assertEqual(2 ** 63 - 1, found.used_bytes)
        disk = {'bus-type': 'scsi', 'bus': 2 ** 32 - 1, 'target': 1}
        found, = replies.filesystems(reply([filesystem | {'disk': [disk]}]))
        self.assertEqual(('scsi:4294967295:1:?',), tuple(found.disks))
        self.nonsense('guest-get-fsinfo', reply([
            filesystem | {'disk': [disk | {'bus': 2 ** 32}]}]))

    def test_three_cut_lists_are_named(self):
        address = {'ip-address': '::1', 'prefix': 1}
        for count, more in ((3, ''), (4, ' (and so for 1 more)'),
                            (6, ' (and so for 3 more)')):
            found = replies.interfaces(reply([
                {'name': f'i{n}', 'ip-addresses': [address] * 257}
                for n in range(count)]))
            self.assertEqual(
                'Not shown: ' + ', '.join(
                    f'1 more than the 256 addresses of interface i{n}'
                    for n in range(3)) + f'{more}.',
                replies.left_out(found, None))

    def test_long_lists_are_cut(self):
        interface = {'name': 'x'}
        address = {'ip-address': '::1', 'prefix': 1}
        found = replies.interfaces(reply([interface] * 1030))
        self.assertEqual((1024, 6), (len(found), found.left_out))
        self.assertEqual('Not shown: 6 more than the 1024 interfaces.',
                         replies.left_out(found, None))
        found = replies.interfaces(reply(
            [interface | {'ip-addresses': [address] * 5000}]))
        self.assertEqual((256, 4744), (len(found[0].addresses),
                                       found[0].addresses_left_out))
        self.assertIn('4744 more than the 256 addresses of interface x',
                      replies.left_out(found, None))
        disks = replies.filesystems(reply(
            [HONEST['guest-get-fsinfo'][0] | {'disk': [{}] * 65}]))
        self.assertEqual((64, 1), (len(disks[0].disks),
                                   disks[0].disks_left_out))
        self.assertIn('1 more than the 64 disks of filesystem /',
                      replies.left_out(None, disks))
        trimmed = replies.trimmed(reply({'paths': [{'path': '/'}] * 1025}))
        self.assertEqual((1024, 1), (len(trimmed), trimmed.left_out))
        self.assertEqual('', replies.left_out(
            replies.interfaces(reply([interface])), None))
        # Many cards of that kind are one short line.
        found = replies.interfaces(reply(
            [interface | {'ip-addresses': [address] * 300}] * 40))
        self.assertIn('and so for 37 more', replies.left_out(found, None))

    def test_addresses(self):
        for address, prefix in (('::g', 1), ('1.2.3', 8), ('', 8), (1, 8),
                                ('10.0.0.1', 33), ('::1', 129),
                                ('::1', -1), ('1' * 9999, 1)):
            self.nonsense('guest-network-get-interfaces', reply(
                [{'name': 'x', 'ip-addresses': [
                    {'ip-address': address, 'prefix': prefix}]}]))
        [interface] = replies.interfaces(reply([{
            'name': 'x', 'hardware-address': '52:54:00:AA:BB:CC',
            'ip-addresses': [{'ip-address': 'fe80::1%\x1b[2J'}]}]))
        self.assertEqual(('52:54:00:aa:bb:cc', ('fe80::1',)),
                         (interface.mac, interface.addresses))
        for mac in ('52:54:00:aa:bb', 'x' * 17, '52:54:00:aa:bb:cc\n'):
            self.nonsense('guest-network-get-interfaces', reply(
                [{'name': 'x', 'hardware-address': mac}]))

    def test_words(self):
        for words in ('\x1b[2J', '\u202egnp.exe', 'a\u2028b', '\u200b',
                      '\ud800', 'a' + '\u0301' * 5000, 'x' * 10 ** 6,
                      '\u3164', '\x9b31m', '\r\n'):
            found = self.parse('guest-get-host-name',
                               reply({'host-name': words}))
            if not isinstance(found, errors.AgentError):
                self.assertLessEqual(len(found), 256)
        self.assertEqual('gnp.exe', replies.host_name(
            reply({'host-name': '\u202egnp.exe'})))
        for name in ('guest ping', '', '\u202e', 'x' * 65, 'a\nb'):
            self.nonsense('guest-info', reply({
                'version': '1', 'supported_commands': [
                    {'name': name, 'enabled': True}]}))

    def test_nonsense_has_no_word_of_the_reply(self):
        for command in PARSERS:
            error = self.parse(command, '{"secret": "secret"}')
            self.assertNotIn('secret', str(error))

    def test_megabytes(self):
        """Refused, or parsed, in time that grows with the length alone."""
        million = 10 ** 6
        cases: dict[str, str | bytes] = {
            'just too long': ' ' * (replies.MAX_REPLY + 1),
            'ten megabytes': b'[' * 10 * million,
            'depth': '[' * million,
            'lists': '[' + '[],' * 300000 + '[]]',
            'quotes': '"' * million,
            'escaped quotes': '"' + '\\"' * 500000,
            'backslashes': '"' + '\\' * (million - 1),
            'number': '{"return": ' + '9' * million + '}',
            'numbers': '{"return": [' + '1,' * 500000 + '1]}',
            'names': '{"return": {' + ','.join(
                f'"{i}": 1' for i in range(70000)) + '}}',
            'spaces': ' ' * million,
            'escapes': '{"return": {"host-name": "' + '\\u202e' * 170000 +
                       '"}}',
            'marks': '{"return": {"host-name": "' + '\u0301' * million +
                     '"}}',
            'commands': reply({'version': '', 'supported_commands': [
                {'name': 'x', 'enabled': True}] * 25000}),
        }
        for name, raw in cases.items():
            for command in PARSERS:
                started = time.process_time()
                self.parse(command, raw)
                # All take less than half a second on a slow machine; what is
                # quadratic would take minutes.
                self.assertLess(time.process_time() - started, 10,
                                f'{command}: {name}')


class PropertyTestCase(RepliesTestCase):
    """Any reply at all gives harmless data or an AgentError."""

    @ANYTHING
    @hypothesis.given(strategies.sampled_from(sorted(PARSERS)),
                      strategies.text() | strategies.binary())
    def test_any_bytes(self, command, raw):
        self.parse(command, raw)

    @ANYTHING
    @hypothesis.given(strategies.sampled_from(sorted(PARSERS)), JSON)
    def test_any_json(self, command, value):
        self.parse(command, json.dumps(value))
        self.parse(command, reply(value))

    @ANYTHING
    @hypothesis.given(strategies.sampled_from(sorted(PARSERS)),
                      strategies.data())
    def test_an_honest_reply_with_one_lie(self, command, data):
        self.parse(command, reply(changed(HONEST[command], data.draw)))

    @ANYTHING
    @hypothesis.given(strategies.sampled_from(sorted(PARSERS)),
                      strategies.data())
    def test_an_honest_reply_with_broken_bytes(self, command, data):
        raw = bytearray(reply(HONEST[command]).encode())
        for _ in range(data.draw(strategies.integers(1, 4))):
            at = data.draw(strategies.integers(0, len(raw) - 1))
            raw[at:at + data.draw(strategies.integers(0, 3))] = data.draw(
                strategies.binary(max_size=5))
            if not raw:
                break
        self.parse(command, bytes(raw))

    @ANYTHING
    @hypothesis.given(strategies.integers(1, 3000),
                      strategies.sampled_from(['[', '{"a":', '[[],', '"\\']))
    def test_any_depth(self, depth, opening):
        for command in PARSERS:
            self.parse(command, '{"return":' + opening * depth)

    @ANYTHING
    @hypothesis.given(strategies.integers())
    def test_any_number(self, number):
        found = self.parse('guest-fsfreeze-freeze', reply(number))
        self.assertEqual(
            number if 0 <= number <= replies.MAX_FROZEN else None,
            None if isinstance(found, errors.AgentError) else found)
