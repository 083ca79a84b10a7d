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

import re

import libvirt
from oslo_concurrency import processutils
from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext import known_errors

# What libvirt says every day, or of things that no row is about: near a row
# in its words, but none of its business.
UNKNOWN = (
    'the moon is full',
    '',
    'Permission denied',
    'No such file or directory',
    'internal error: process exited while connecting to monitor: ',
    'internal error: qemu unexpectedly closed the monitor: 2026-11-23T03:31:'
    '51.113297Z qemu-system-x86_64: terminating on signal 15 from pid 18',
    "Domain not found: no domain with matching uuid "
    "'11111111-2222-3333-4444-555555555555'",
    'Requested operation is not valid: domain is not running',
    'Requested operation is not valid: domain is already running',
    'argument unsupported: QEMU guest agent is not configured',
    'Guest agent is not responding: QEMU guest agent is not connected',
    'device not found: disk vdz not found',
    # Near those of CPUs, control groups, taps, TLS, SASL and ssh.
    "operation failed: guest CPU doesn't match specification: ",
    'the CPU is incompatible with host CPU',
    'the CPU is incompatible with host CPU: something new',
    'unsupported configuration: CPU model is required',
    'unsupported configuration: invalid CPU feature policy',
    "Unable to write to '/sys/fs/cgroup/machine/memory.max': No such file or "
    'directory',
    "Unable to write to '/proc/sys/net/ipv6/conf/tap0/disable_ipv6': "
    'Permission denied',
    'Unable to create tap device tap0: No such file or directory',
    'invalid argument: could not find capabilities for ostype=xen',
    'authentication failed: something new',
    'Cannot recv data: bash: line 1: virsh: command not found: Connection '
    'reset by peer',
    "Cannot read file '/etc/pki/CA/cacert.pem': No such file or directory",
    "internal error: unable to execute QEMU command 'migrate': State blocked "
    'by non-migratable device 0000:00:04.0/virtio-gpu',
    'operation failed: migration out job: unexpectedly failed',
    "internal error: QEMU unexpectedly closed the monitor (vm='a'): "
    "2026-11-26T22:59:15.954070Z qemu-system-x86_64: error while loading "
    "state for instance 0x0 of device '0000:00:03.0/virtio-net'",
    # Names with words of errors in them.
    "Domain not found: no domain with matching name 'No space left on "
    "device'",
    "device not found: disk '/srv/Host key verification failed/Permission "
    "denied' not found",
    "internal error: QEMU unexpectedly closed the monitor (vm='unable to map "
    "backing store for guest RAM'): 2026-11-23T03:31:51.113297Z "
    'qemu-system-x86_64: terminating on signal 15 from pid 18',
    'internal error: process exited while connecting to monitor: '
    '2026-11-23T03:31:55.677899Z qemu-system-x86_64: -blockdev '
    '{"driver":"file","filename":"/srv/Failed to get "write" lock: TLS '
    'handshake failed.img"}: something new',
    "Failed to connect socket to '/run/libvirt/libvirt-sock': Too many open "
    'files',
    "unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' does "
    "not support virt type 'xen'",
    'Unable to create tap device tapx0: Operation not permitted',
    'XML error: Invalid PCI address 0000:00:00.0',
)


def alternatives(pattern: str) -> list[str]:
    """A regular expression cut at each ``|`` outside of parentheses."""
    found, depth = [''], 0
    for piece in re.findall(r'\\.|\[[^]]*\]|.', pattern):
        depth += {'(': 1, ')': -1}.get(piece, 0)
        if piece == '|' and not depth:
            found.append('')
        else:
            found[-1] += piece
    return found


class ExplainTestCase(base.BaseTestCase):

    def test_each_text_is_of_one_row(self):
        """No row takes another's text, so none can hide another."""
        for row in known_errors.TABLE:
            for text in row.said:
                self.assertEqual(
                    [row.name],
                    [other.name for other in known_errors.TABLE if
                     other.takes(known_errors.without_names(text))],
                    text)
                self.assertIs(row, errors.explain(text))

    def test_each_alternative_of_a_pattern_has_a_text(self):
        """A pattern for which there is no text would be a guess."""
        for row in known_errors.TABLE:
            for alternative in alternatives(row.pattern):
                self.assertTrue(any(
                    re.search(alternative, known_errors.without_names(text),
                              re.DOTALL | re.IGNORECASE)
                    for text in row.said), (row.name, alternative))

    def test_cause_and_remedy_beside_libvirts_words(self):
        for row in known_errors.TABLE:
            for text in row.said:
                whole = errors.with_explanation(text)
                self.assertIn(row.cause, whole)
                self.assertIn(row.remedy, whole)
                self.assertIn(errors.clean(text), whole)

    def test_unknown_passes_unchanged(self):
        for text in UNKNOWN:
            self.assertIsNone(errors.explain(text), text)
            self.assertEqual(text.strip(), errors.with_explanation(text))

    def test_numbers_of_errors(self):
        """The same words in an error of another kind are another's."""
        class Error(Exception):
            def __init__(self, code: int, text: str) -> None:
                super().__init__(text)
                self.get_error_code = lambda: code

        for row in known_errors.TABLE:
            for text in row.said:
                for code in (libvirt.VIR_ERR_NO_DOMAIN,
                             libvirt.VIR_ERR_AGENT_UNRESPONSIVE):
                    self.assertIsNone(errors.explain(Error(code, text)))
                self.assertTrue([
                    code for code in row.codes
                    if errors.explain(Error(code, text)) is row])

    def test_what_libvirt_calls_these_numbers(self):
        for text, code in (
                ('invalid argument: ', libvirt.VIR_ERR_INVALID_ARG),
                ('XML error: ', libvirt.VIR_ERR_XML_ERROR),
                ('Network not found: ', libvirt.VIR_ERR_NO_NETWORK),
                ('authentication failed: ', libvirt.VIR_ERR_AUTH_FAILED),
                ('Requested operation is not valid: ',
                 libvirt.VIR_ERR_OPERATION_INVALID),
                ('Secret not found: ', libvirt.VIR_ERR_NO_SECRET),
                ('unsupported configuration: ',
                 libvirt.VIR_ERR_CONFIG_UNSUPPORTED),
                ('Timed out during operation: ',
                 libvirt.VIR_ERR_OPERATION_TIMEOUT),
                ('authentication unavailable: ',
                 libvirt.VIR_ERR_AUTH_UNAVAILABLE),
                ('authentication cancelled: ',
                 libvirt.VIR_ERR_AUTH_CANCELLED),
                ('Unsafe migration: ', libvirt.VIR_ERR_MIGRATE_UNSAFE),
                ('Operation not supported: ',
                 libvirt.VIR_ERR_OPERATION_UNSUPPORTED),
                ('the CPU is incompatible with host CPU',
                 libvirt.VIR_ERR_CPU_INCOMPATIBLE)):
            for row in known_errors.TABLE:
                # And of the four that libvirt passes on.
                if any(said.startswith(text) for said in row.said):
                    self.assertIn(code, row.codes, row.name)
                else:
                    self.assertNotIn(code, row.codes, row.name)

    def test_what_libvirt_passes_on(self):
        """From the kernel, QEMU and other hosts, by any row."""
        for row in known_errors.TABLE:
            self.assertLessEqual(
                {libvirt.VIR_ERR_INTERNAL_ERROR,
                 libvirt.VIR_ERR_OPERATION_FAILED,
                 libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_RPC},
                row.codes)

    def test_what_a_program_said_is_no_name(self):
        row = errors.explain(
            "Unexpected error while running command.\nCommand: qemu-img\n"
            "Stderr: 'qemu-img: No space left on device'")
        assert row is not None
        self.assertEqual('disk-full', row.name)

    def test_libvirt_of_another_host(self):
        for text, name, words in (
                ("unable to connect to server at '10.0.0.2:16509': "
                 'Connection refused', 'remote-down', 'connection_uri'),
                ("unable to connect to server at '[fd00::2]:16514': No route "
                 'to host', 'remote-down', '16514'),
                ("unable to connect to server at '10.0.0.2:49153': "
                 'Connection refused', 'migration-connect', '49152')):
            row = errors.explain(text)
            assert row is not None
            self.assertEqual(name, row.name)
            self.assertIn(words, row.remedy)

    def test_the_daemon_whose_socket_it_is(self):
        for daemon in ('virtlogd', 'virtlockd', 'virtnetworkd',
                       'virtsecretd', 'virtnodedevd', 'virtstoraged'):
            for path in (f'/run/libvirt/{daemon}-sock',
                         f'/var/run/libvirt/{daemon}-sock-ro',
                         f'/run/libvirt/{daemon}-admin-sock'):
                row = errors.explain(f"Failed to connect socket to '{path}': "
                                     f'Connection refused')
                assert row is not None
                self.assertEqual(f'{daemon}-down', row.name)
                self.assertIn(f'{daemon}.socket', row.remedy)

    def test_rows(self):
        names = [row.name for row in known_errors.TABLE]
        self.assertEqual(len(names), len(set(names)))
        for row in known_errors.TABLE:
            self.assertRegex(row.name, '^[a-z]+(-[a-z]+)*$')
            self.assertRegex(row.seen, r'^(libvirt \d|reported \(|source \()')
            self.assertTrue(row.said, row.name)
            for sentences in (row.cause, row.remedy):
                self.assertRegex(sentences, r'^[A-Za-z].*\.$')
                self.assertNotIn('  ', sentences)

    def test_remedies_name_no_path_of_a_guest(self):
        """They stand beside an instance, where paths have no business."""
        for row in known_errors.TABLE:
            for text in (row.cause, row.remedy):
                for path in ('/var/lib/nova', '/instances/', '/srv'):
                    self.assertNotIn(path, text, row.name)

    def test_five_states_of_a_broken_host(self):
        for text, name, remedy in (
                ('Could not access KVM kernel module: Permission denied\n'
                 'failed to initialize kvm: Permission denied',
                 'kvm-permission', 'udevadm trigger --action=add'),
                ("Emulator '/usr/bin/qemu-system-x86_64' does not support "
                 "virt type 'kvm'", 'kvm-not-offered', 'modprobe kvm_intel'),
                ("the accel 'kvm' is not supported by "
                 "'/usr/bin/qemu-system-x86_64' on this host",
                 'kvm-not-offered', 'modprobe kvm_intel'),
                ('vhost-net was requested for an interface, but is '
                 'unavailable', 'vhost-net', 'modprobe vhost_net'),
                ("no supported architecture for os type 'hvm'",
                 'no-hvm', 'Install QEMU')):
            row = errors.explain(text)
            assert row is not None
            self.assertEqual(name, row.name)
            self.assertIn(remedy, row.remedy)

    def test_endless_text(self):
        self.assertIsNone(errors.explain("CPU mode 'x' " * 100000))
        self.assertEqual(300, len(errors.with_explanation('x' * 10**7)))


class CausesTestCase(base.BaseTestCase):
    """An error of libvirt or Ceph among those that Nova makes of it."""

    @staticmethod
    def raised(inner: Exception, by_from: bool) -> Exception:
        try:
            try:
                raise inner
            except Exception as e:
                if by_from:
                    raise ValueError('outer') from e
                raise ValueError('outer')
        except ValueError as e:
            return e

    def test_libvirts(self):
        class Error(Exception):
            def get_error_code(self) -> int:
                return 38

        error = Error('x')
        self.assertEqual(38, errors.libvirt_error_code(error))
        self.assertIsNone(errors.libvirt_error_code(ValueError('x')))
        for found in (error, self.raised(error, True),
                      self.raised(error, False)):
            self.assertIs(error, errors.libvirt_error(found))
        self.assertIsNone(errors.libvirt_error(ValueError('x')))
        self.assertIsNone(errors.libvirt_error(None))

    def test_of_cephs_library(self):
        for module in ('rados', 'rbd'):
            error = type('Error', (Exception,), {'__module__': module})('x')
            for found in (error, self.raised(error, True),
                          self.raised(error, False)):
                self.assertIs(error, errors.ceph_error(found))
        missing = RuntimeError('rbd python libraries not found')
        self.assertIs(missing, errors.ceph_error(missing))
        for other in (RuntimeError('x'), None,
                      ValueError('rbd python libraries not found')):
            self.assertIsNone(errors.ceph_error(other))

    def test_of_cephs_commands(self):
        for command, ours in (
                ('ceph df --id nova', True), ('/usr/bin/rbd import', True),
                ('rbd', True), ('qemu-img info ceph', False),
                ('cephx', False), (None, False)):
            error = processutils.ProcessExecutionError(
                stderr='timed out', cmd=command)
            self.assertEqual('timed out' if ours else '',
                             errors.command_said(error))
            self.assertEqual(error if ours else None,
                             errors.ceph_error(self.raised(error, True)))
        self.assertEqual('', errors.command_said(
            processutils.ProcessExecutionError(cmd='ceph')))
        other = ValueError()
        other.cmd, other.stderr = 'ceph', 'x'  # type: ignore[attr-defined]
        self.assertEqual('', errors.command_said(other))

    def test_paths(self):
        for text, wanted in (
                ("'/var/lib/nova/instances/u/disk': full", "'disk': full"),
                ('rbd:/a/b', 'rbd:/a/b'), ('http://a/b/c', 'http://a/b/c'),
                ('/a', '/a'), ('a/b/c', 'a/b/c')):
            self.assertEqual(wanted, errors.without_paths(text))


class CleanTestCase(base.BaseTestCase):

    def test_control_characters(self):
        self.assertEqual('a b c', errors.clean('a\x1b\n\tb\u202e\x00c'))

    def test_what_shows_as_nothing_or_turns_the_line_around(self):
        for c in (
                '\u200b\u200d\u2060\ufeff\u00ad'           # zero width
                '\u061c\u200e\u200f\u202a\u202e\u2066\u2069'    # bidi
                '\x85\u2028\u2029'                     # ends of lines
                '\x1b\x9b\x9d\x07\x08\x7f'                # terminals
                '\ud800\ue000\uffff\U000e0041'             # no characters
                '\u034f\u115f\u1160\u17b4\u180e\u2800\u3164\ufe0f\uffa0'
                '\U000e0100\u00a0\u3000'):
            self.assertEqual('a b', errors.clean(f'a{c}b'), ascii(c))

    def test_other_peoples_letters_stay(self):
        for text in ('Zoë', 'Nguyễn', 'e\u0301', 'مرحبا', 'क्षि', '日本語',
                     '한국어', '🙂'):
            self.assertEqual(text, errors.clean(text))

    def test_marks_piled_up(self):
        self.assertEqual('a' + '\u0301' * 3 + 'b',
                         errors.clean('a' + '\u0301' * 1000 + 'b'))

    def test_megabytes(self):
        self.assertEqual('x' * 297 + '...', errors.clean('x' * 10 ** 7))
        self.assertEqual('a...', errors.clean('a' + ' ' * 10 ** 7 + 'b'))

    def test_what_is_looked_at(self):
        """Sixteen times the limit, of which most may be nothing."""
        for hidden, wanted in ((159, 'x'), (160, '...')):
            self.assertEqual(wanted, errors.clean(
                '\u200b' * hidden + 'x', limit=10))

    def test_length(self):
        self.assertEqual('x' * 7 + '...', errors.clean('x' * 11, limit=10))
        self.assertEqual('x' * 10, errors.clean('x' * 10, limit=10))


class AgentErrorTestCase(base.BaseTestCase):

    def test_nothing_is_frozen_unless_it_is_said(self):
        error = errors.AgentError('x', fault=errors.AgentFault.NO_ANSWER)
        self.assertIs(False, error.left_frozen)

    def test_what_may_have_happened(self):
        """Only where libvirt sent nothing is it sure that nothing was."""
        self.assertEqual(
            {'NO_GUEST', 'PAUSED', 'NO_CHANNEL', 'DISCONNECTED', 'GIVEN_UP',
             'BUSY'},
            {fault.name for fault in errors.AgentFault
             if not errors.AgentError('x', fault=fault).may_have_acted})


class KVMExtErrorTestCase(base.BaseTestCase):

    def test_text(self):
        error = errors.InvalidOption('It is wrong.', 'Repair it.')
        self.assertEqual('It is wrong. Repair it.', str(error))
        self.assertEqual('It is wrong.', str(errors.HostError('It is wrong.')))
