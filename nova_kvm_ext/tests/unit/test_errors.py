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

from oslotest import base

from nova_kvm_ext import errors

# libvirt 9.0 and QEMU 7.2 said these on real hosts in the state that the
# remedy is for; the last one is from older releases' bug reports.
SAID = {
    'internal error: process exited while connecting to monitor: Could not '
    'access KVM kernel module: Permission denied\n'
    'qemu-system-x86_64: failed to initialize kvm: Permission denied':
        'udevadm trigger',
    "unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' does "
    "not support virt type 'kvm'": 'modprobe kvm_intel',
    "invalid argument: the accel 'kvm' is not supported by "
    "'/usr/bin/qemu-system-x86_64' on this host": 'modprobe kvm_intel',
    'unsupported configuration: vhost-net was requested for an interface, '
    'but is unavailable': 'modprobe vhost_net',
    "unsupported configuration: CPU mode 'host-passthrough' for x86_64 qemu "
    'domain on x86_64 host is not supported by hypervisor': 'cpu_mode',
    'operation failed: guest CPU doesn\'t match specification: missing '
    'features: svm,npt': 'older cpu_model',
    "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such "
    'file or directory': 'libvirtd -d',
    "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission "
    'denied': 'libvirt group',
    "qemu-system-x86_64: error: failed to set MSR 0x10a to 0x0":
        'virt_type = qemu',
    "internal error: no supported architecture for os type 'hvm'":
        'Install QEMU',
}


class ExplainTestCase(base.BaseTestCase):

    def test_known(self):
        for text, remedy in SAID.items():
            found = errors.explain(text)
            assert found is not None, text
            self.assertIn(remedy, found.remedy)
            whole = errors.with_explanation(text)
            self.assertIn(found.cause, whole)
            self.assertIn(errors.clean(text), whole)

    def test_unknown_passes_unchanged(self):
        self.assertIsNone(errors.explain('the moon is full'))
        self.assertEqual('the moon is full',
                         errors.with_explanation('the moon is full'))

    def test_rows_are_sentences(self):
        for row in errors._KNOWN_ERRORS:
            self.assertTrue(row.cause.endswith('.'), row)
            self.assertTrue(row.remedy.endswith(('.', ')')), row)


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

    def test_length(self):
        self.assertEqual('x' * 7 + '...', errors.clean('x' * 11, limit=10))
        self.assertEqual('x' * 10, errors.clean('x' * 10, limit=10))


class AgentErrorTestCase(base.BaseTestCase):

    def test_what_may_have_happened(self):
        """Only where libvirt sent nothing is it sure that nothing was."""
        self.assertEqual(
            {'NO_GUEST', 'NO_CHANNEL', 'DISCONNECTED', 'GIVEN_UP', 'BUSY'},
            {fault.name for fault in errors.AgentFault
             if not errors.AgentError('x', fault=fault).may_have_acted})


class KVMExtErrorTestCase(base.BaseTestCase):

    def test_text(self):
        error = errors.InvalidOption('It is wrong.', 'Mend it.')
        self.assertEqual('It is wrong. Mend it.', str(error))
        self.assertEqual('It is wrong.', str(errors.HostError('It is wrong.')))
