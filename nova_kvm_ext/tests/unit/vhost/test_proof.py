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

import itertools
from typing import Any

from oslotest import base

from nova_kvm_ext.host import model
from nova_kvm_ext.vhost import proof


def nic(driver: str | None = 'vhost', net_type: str = 'bridge',
        nic_model: str = 'virtio', queues: int | None = None,
        mac: str = '52:54:00:00:00:01') -> str:
    attributes = ''.join(
        f' {name}="{value}"' for name, value in
        (('name', driver), ('queues', queues)) if value is not None)
    return (f'<interface type="{net_type}"><mac address="{mac}"/>'
            f'<model type="{nic_model}"/>' +
            (f'<driver{attributes}/>' if attributes else '') + '</interface>')


def domain(*interfaces: str, virt_type: str = 'kvm') -> str:
    return (f'<domain type="{virt_type}" id="1"><devices>'
            f'{"".join(interfaces)}</devices></domain>')


def judge(xml: str, descriptors: int | None, threads: int | None,
          pid: int | None = 7) -> list[proof.Verdict]:
    return proof.judge(proof.nics(xml),
                       model.VhostFacts(pid, descriptors, threads))


class NicsTestCase(base.BaseTestCase):

    def test_what_the_xml_says(self):
        found = proof.nics(domain(nic(queues=4), nic(None, 'hostdev', '')))
        self.assertEqual(
            proof.Nic('52:54:00:00:00:01', 'bridge', 'virtio', 'vhost', 4,
                      None), found[0])
        self.assertEqual((None, 1), (found[1].driver, found[1].queues))
        self.assertIn('hostdev', found[1].unfit)

    def test_an_interface_with_next_to_nothing(self):
        found, = proof.nics(domain('<interface type="user"/>'))
        self.assertEqual(('', '', 1), (found.mac, found.model, found.queues))

    def test_running(self):
        self.assertEqual(proof.Running('u', 'n'), proof.running(
            '<domain type="kvm" id="1"><uuid>u</uuid><name>n</name>'
            '</domain>'))
        self.assertIsNone(proof.running('<domain type="kvm"/>'))


class JudgeTestCase(base.BaseTestCase):

    def uses(self, *args: Any) -> list[bool | None]:
        return [verdict.uses for verdict in judge(*args)]

    def test_promised_and_kept(self):
        verdict, = judge(domain(nic()), 1, 1)
        self.assertEqual((True, True, False),
                         (verdict.promised, verdict.uses, verdict.broken))
        self.assertEqual('vhost-net of QEMU (PID 7): 1 descriptor(s), '
                         '1 thread(s)', verdict.details)

    def test_promised_and_lost(self):
        for descriptors, threads in ((0, 0), (0, None), (1, 0), (0, 1),
                                     (None, 0)):
            verdict, = judge(domain(nic()), descriptors, threads)
            self.assertTrue(verdict.broken, str((descriptors, threads)))

    def test_each_queue_counts(self):
        xml = domain(nic(queues=4))
        self.assertEqual([True], self.uses(xml, 4, 4))
        self.assertEqual([False], self.uses(xml, 3, 4))
        self.assertEqual([False], self.uses(xml, 4, 3))

    def test_what_may_not_be_looked_at_is_unknown(self):
        verdict, = judge(domain(nic()), None, None)
        self.assertIsNone(verdict.uses)
        self.assertFalse(verdict.broken)
        self.assertIn('may not look', verdict.details)
        verdict, = judge(domain(nic()), None, None, None)
        self.assertIsNone(verdict.uses)
        self.assertIn('cannot be seen', verdict.details)

    def test_threads_are_proof_enough_for_who_sees_no_descriptors(self):
        verdict, = judge(domain(nic()), None, 1)
        self.assertTrue(verdict.uses)
        self.assertIn('descriptors not to be seen', verdict.details)
        verdict, = judge(domain(nic()), 1, None)
        self.assertTrue(verdict.uses)
        self.assertIn('threads not to be seen', verdict.details)

    def test_what_qemu_says_of_itself(self):
        """It keeps descriptor and thread when it continues without them."""
        for fall_backs, switches, wanted in (
                (0, 0, True), (None, 0, True), (None, None, True),
                (0, 5000, True), (1, 3, False), (2, 3, False),
                # It may have gone back to vhost-net without a word.
                (1, 5000, None), (1, None, None)):
            verdict, = proof.judge(
                proof.nics(domain(nic())),
                model.VhostFacts(7, 1, 1, fall_backs, switches))
            self.assertIs(wanted, verdict.uses, str((fall_backs, switches)))
            self.assertEqual(bool(fall_backs),
                             'falling back' in verdict.details)
        # One of two, and the log does not say which.
        self.assertEqual([None, None, False], [
            verdict.uses for verdict in proof.judge(
                proof.nics(domain(nic(), nic(), nic('qemu'))),
                model.VhostFacts(7, 2, 2, 1, 5000))])

    def test_a_worker_that_never_moved_a_packet(self):
        """Woken 16 times at most, for each that serves."""
        for served, switches, wanted in ((1, 16, False), (1, 17, None),
                                         (2, 32, False), (2, 33, None)):
            verdict, = proof.judge(
                proof.nics(domain(nic(queues=served))),
                model.VhostFacts(7, served, served, 1, switches))
            self.assertIs(wanted, verdict.uses)

    def test_what_the_xml_promised_is_kept_apart(self):
        for served, expected in (
                (0, [(True, False), (True, False), (False, False)]),
                (1, [(True, None), (True, None), (False, False)]),
                (2, [(True, True), (True, True), (False, False)]),
                (3, [(True, True), (True, True), (False, True)])):
            self.assertEqual(expected, [
                (verdict.promised, verdict.uses) for verdict in judge(
                    domain(nic(), nic(), nic(None)), served, served)])

    def test_not_asked_for(self):
        for xml in (domain(nic('qemu')), domain(nic(net_type='vhostuser')),
                    domain(nic(nic_model='e1000')),
                    domain(nic(), virt_type='qemu')):
            # Even with vhost threads: those of a vsock, say.
            for count in (0, 1, None):
                verdict, = judge(xml, count, count)
                self.assertEqual((False, False),
                                 (verdict.promised, verdict.uses))
                self.assertTrue(verdict.details)

    def test_left_to_libvirt(self):
        self.assertEqual([True], self.uses(domain(nic(None)), 1, 1))
        verdict, = judge(domain(nic(None)), 0, 0)
        self.assertEqual((False, False, False),
                         (verdict.promised, verdict.uses, verdict.broken))

    def test_several_of_which_none_has_any(self):
        self.assertEqual([False, False], self.uses(domain(nic(), nic()), 0,
                                                   0))
        # Of one nobody can tell whose it is.
        self.assertEqual([None, None], self.uses(domain(nic(), nic()), 1, 1))

    def test_several_interfaces(self):
        xml = domain(nic(queues=2), nic(None), nic('qemu'), nic(None))
        for served, wanted in (
                (4, [True, True, False, True]),
                (3, [True, None, False, None]),
                (2, [True, False, False, False]),
                (1, [False, False, False, False]),
                (0, [False, False, False, False])):
            self.assertEqual(wanted, self.uses(xml, served, served),
                             str(served))

    def test_whose_is_it(self):
        """The kernel does not say which of two has the one descriptor."""
        found = judge(domain(nic(), nic()), 1, 1)
        self.assertEqual([None, None], [verdict.uses for verdict in found])
        self.assertIn('need 2', found[0].details)

    def test_broken_only_when_promised_and_seen(self):
        for driver, count in itertools.product(
                ('vhost', None, 'qemu'), (None, 0, 1)):
            verdict, = judge(domain(nic(driver)), count, count)
            self.assertEqual(driver == 'vhost' and count == 0,
                             verdict.broken)
