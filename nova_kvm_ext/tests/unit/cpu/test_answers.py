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

"""Our verdicts about CPUs beside what three libvirts have said and done.

tests/data has what tools/run-libvirt-matrix captured (--fixtures): domain
capabilities, the CPU map, and what happened to a guest of each CPU that was
started, of type qemu and kvm. It was a virtual machine on an AMD EPYC whose
KVM hides much of the CPU from guests.
"""

import pathlib

from oslotest import base

from nova_kvm_ext import tests
from nova_kvm_ext.tests.libvirt_matrix import exceptions
from nova_kvm_ext.tests.libvirt_matrix import live
from nova_kvm_ext.tests.libvirt_matrix import verdicts

_DATA = pathlib.Path(tests.__file__).parent / 'data'
_FILES = {
    release: _DATA / f'cpu-answers-libvirt-{libvirt}-qemu-{qemu}.json.xz'
    for release, libvirt, qemu in (('bookworm', '9.0', '7.2'),
                                   ('trixie', '11.3', '10.0'),
                                   ('sid', '12.8', '11.1'))}


class AnswersTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.beds = live.judge({
            release: live.from_fixture(path.read_bytes())
            for release, path in _FILES.items()})

    def test_nothing_differs(self):
        for bed in self.beds:
            self.assertEqual([], [
                (v.kind, v.name, v.ours, v.theirs, v.why, v.words)
                for v in bed.judged
                if verdicts.outcome(v, exceptions.ALL) == verdicts.DIFFER],
                bed.name)

    def test_every_libvirt_and_type_is_there(self):
        self.assertEqual(
            {'libvirt 9.0.0', 'libvirt 11.3.0', 'libvirt 12.8.0'},
            {bed.name.partition(' with')[0] for bed in self.beds})
        for bed in self.beds:
            self.assertGreater(bed.started, 100, bed.name)
            kinds = {v.kind for v in bed.judged}
            for kind in live.TYPES:
                self.assertIn(f'live self ({kind})', kinds)
                self.assertIn(f'start model ({kind})', kinds)
                self.assertIn(f'start level, gets less ({kind})', kinds)

    def test_a_running_guest_is_never_refused_on_its_own_kvm_host(self):
        seen = [v for bed in self.beds for v in bed.judged
                if v.kind == 'live self (kvm)']
        self.assertEqual({True}, {v.ours for v in seen})
        self.assertIn('host-model', {v.name for v in seen})
