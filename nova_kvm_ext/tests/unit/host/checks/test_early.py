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
"""What the start of the driver knows before it has looked at the host."""

import dataclasses
from typing import Any
from unittest import mock

import fixtures

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.host.checks import early
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import hooks
from nova_kvm_ext.host import model
from nova_kvm_ext.host import options
from nova_kvm_ext.host import probe
from nova_kvm_ext.host import probe_answers
from nova_kvm_ext.tests.unit.host.checks import case
from nova_kvm_ext.tests.unit.host.checks import faults
from nova_kvm_ext.tests.unit.host import fake_host

RUNS = model.ProbeFacts('kvm', True, 'it ran', True)
SUDO = model.ProgramFacts('sudo', '/usr/bin/sudo')
KVM = model.EarlyFacts('kvm', '/usr/bin/qemu', RUNS, 'prefer', (SUDO,))


def ends_the_service(code: str) -> bool:
    return (bool(runner.proofs()[code]) and code not in hooks._NO_MATTER and
            code not in hooks._DISABLES and not code.startswith(hooks._CEPH))


class SettledTestCase(case.ChecksTestCase):

    def settled(self, **changes: Any) -> bool:
        return early.settled(dataclasses.replace(KVM, **changes), helper=True)

    def test_settled(self):
        self.assertTrue(self.settled())
        self.assertTrue(self.settled(vhost_net='off'))
        # In software there is nothing to prove, and no vhost-net.
        self.assertTrue(self.settled(virt_type='qemu', probe=None,
                                     vhost_net='require'))

    def test_in_doubt(self):
        for changes in (
                {'emulator': ''}, {'probe': None}, {'vhost_net': 'require'},
                {'probe': dataclasses.replace(RUNS, runs=None)},
                {'probe': dataclasses.replace(RUNS, runs=False)},
                {'virt_type': 'lxc'}, {'virt_type': 'qemu', 'emulator': ''}):
            self.assertFalse(self.settled(**changes), changes)
        missing = dataclasses.replace(
            KVM, helper=(model.ProgramFacts('sudo', None),))
        self.assertFalse(early.settled(missing, helper=True))
        self.assertTrue(early.settled(missing, helper=False))

    def test_every_check_that_ends_the_service_is_thought_of(self):
        self.assertEqual(
            {code for code in runner.codes() if ends_the_service(code)},
            set(early.RULED_OUT))


class TruthTestCase(case.ChecksTestCase):
    """Where it is settled, no check of the same host says otherwise."""

    @staticmethod
    def kept(host: fake_host.FakeHost) -> dict[str, str]:
        """What the probe's answer depends on."""
        found = probe_answers.read_facts(host.connection, root=host.root)
        # There is a mock in its place.
        del found['kernel']
        return found

    def look(self, host: fake_host.FakeHost,
             before: dict[str, str]) -> model.EarlyFacts:
        """What the driver would know of a host that is broken.

        :param before: what the probe's answer depended on when it was kept
        """
        virt_type = host.settings['virt_type']
        wanted = options.HostOptions(
            files=(), settings=mock.Mock(
                virt_type=virt_type, cpu_mode=None, cpu_models=(),
                extra_flags=(), vhost_net=host.settings['vhost_net']),
            helper=('sudo', 'privsep-helper'))
        told = None
        if host.connection.emulator and (
                virt_type == 'qemu' or host.connection.kvm):
            told = dataclasses.replace(
                capabilities.parse(host.connection.getDomainCapabilities(
                    None, 'x86_64', 'pc', virt_type)),
                emulator=host.connection.emulator)
        answer = (probe.ProbeResult(True, 'it ran', 1.0)
                  if before == self.kept(host) else None)
        with fixtures.MonkeyPatch('nova_kvm_ext.host.probe_answers.kept_run',
                                  lambda *args, **kwargs: answer):
            return facts.read_early(
                wanted, told, lambda: host.connection,
                '/nowhere' if virt_type == 'kvm' else None, root=host.root)

    def failed(self, fault: faults.Fault, virt_type: str, vhost_net: str
               ) -> list[verdict.CheckResult] | None:
        """What ends the service; None where it is not settled."""
        with fake_host.FakeHost() as host:
            host.service = True
            host.settings |= {'virt_type': virt_type, 'vhost_net': vhost_net}
            before = self.kept(host)
            fault.change(host)
            known = self.look(host, before)
            if not early.settled(known, helper=True):
                return None
            host.tried = known.probe
            if host.settings['virt_type'] == 'qemu':
                host.cache_dir = None
            return [
                result for result in self.check(host).values()
                if result.result == verdict.FAIL and
                ends_the_service(result.code) and
                # The driver has refused these options before.
                result.code != 'KVM507']

    def test_no_fault_is_missed(self):
        settled = {}
        for fault in faults.FAULTS:
            for virt_type in ('kvm', 'qemu'):
                for vhost_net in (('prefer', 'require', 'off') if
                                  fault.code.startswith('KVM3') else
                                  ('prefer',)):
                    found = self.failed(fault, virt_type, vhost_net)
                    if found is not None:
                        settled[fault.name, virt_type, vhost_net] = found
        self.assertEqual({}, {key: found for key, found in settled.items()
                              if found})
        self.assertEqual(
            {('kvm', 'prefer'), ('kvm', 'off'), ('qemu', 'prefer'),
             ('qemu', 'off'), ('qemu', 'require')},
            {key[1:] for key in settled})
