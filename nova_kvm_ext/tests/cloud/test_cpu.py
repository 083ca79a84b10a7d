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

"""CPUs of guests: modes, levels and traits, as the guest itself sees them.

Through the public APIs, but for one. What a cloud's computes can give is read
from their traits in Placement; what they cannot must be refused.
"""

from collections.abc import Mapping

import ddt

from nova_kvm_ext.cpu import levels
from nova_kvm_ext.tests.cloud import base
from nova_kvm_ext import traits

_NO_HOST = 'No valid host was found'

# In Linux's names; https://gitlab.com/x86-psABIs/x86-64-ABI
_V2 = {'cx16', 'lahf_lm', 'pni', 'popcnt', 'sse4_1', 'sse4_2', 'ssse3'}
_V3 = {'abm', 'avx', 'avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'movbe', 'xsave'}
_V4 = {'avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl'}
_LEVELS = {
    'x86-64-v2': (_V2, _V3 | _V4 | {'aes'}),
    'x86-64-v2-AES': (_V2 | {'aes'}, _V3 | _V4),
    'x86-64-v3': (_V2 | _V3, _V4),
    'x86-64-v4': (_V2 | _V3 | _V4, set()),
}


@ddt.ddt
class CPUTestCase(base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.available = set().union(
            *map(cls.traits, cls.hosts()))

    available: set[str]

    def _flags(self, trait: str, extra_specs: Mapping[str, str] = {}):
        """Flags in a guest; None where no host has the trait."""
        flavor = self.make_flavor(extra_specs={
            **extra_specs, f'trait:{trait}': 'required'})
        server = self.ask_for(flavor=flavor)
        if trait in self.available:
            self.wait_for_status(server, 'ACTIVE')
            return self.report(server).cpu_flags
        self.wait_for_status(server, 'ERROR')
        self.assertIn(_NO_HOST, self.fault(server))
        return None

    @ddt.data('host-model', 'host-passthrough', 'maximum')
    def test_mode_of_flavor(self, mode):
        flags = self._flags(traits.name('cpu_mode', mode),
                            {'kvm_ext:cpu_mode': mode})
        if flags is not None:
            self.assertIn('lm', flags)
            # QEMU's default CPU has no more.
            self.assertGreaterEqual(flags, _V2)

    def test_mode_none_of_flavor(self):
        server = self.boot(flavor=self.make_flavor(
            extra_specs={'kvm_ext:cpu_mode': 'none'}))
        # qemu64 is no x86-64-v2.
        self.assertFalse(_V2 <= self.report(server).cpu_flags)

    @ddt.data(*_LEVELS)
    def test_level_of_flavor(self, level):
        flags = self._flags(traits.name('cpu_level', level),
                            {'kvm_ext:cpu_model': level})
        if flags is not None:
            has, lacks = _LEVELS[level]
            self.assertEqual(set(), has - flags)
            self.assertEqual(set(), lacks & flags)

    def test_every_level_is_checked(self):
        self.assertEqual(
            set(_LEVELS), {level.name for level in levels.ALL})

    def test_level_of_image(self):
        image = self.make_image(base.guest_file(), properties={
            'kvm_ext_cpu_model': 'x86-64-v2'})
        flags = self.report(self.boot(image=image)).cpu_flags
        has, lacks = _LEVELS['x86-64-v2']
        self.assertEqual(set(), has - flags)
        self.assertEqual(set(), lacks & flags)

    def test_mode_of_image_that_is_not_allowed(self):
        image = self.make_image(base.guest_file(), properties={
            'kvm_ext_cpu_mode': 'maximum'})
        server = self.wait_for_status(self.ask_for(image=image), 'ERROR')
        self.assertIn('image_cpu_modes', self.fault(server))

    def test_feature_that_no_host_has(self):
        missing = sorted(
            {'HW_CPU_X86_AVX512F', 'HW_CPU_X86_AVX512VNNI',
             'HW_CPU_X86_AMX', 'HW_CPU_X86_SGX'} - self.available)
        server = self.wait_for_status(self.ask_for(flavor=self.make_flavor(
            extra_specs={f'trait:{missing[0]}': 'required'})), 'ERROR')
        self.assertIn(_NO_HOST, self.fault(server))

    def test_feature_that_a_host_has(self):
        wanted = {'HW_CPU_X86_AVX2': 'avx2', 'HW_CPU_X86_SSE42': 'sse4_2',
                  'HW_CPU_X86_SSE2': 'sse2'}
        trait = next(trait for trait in wanted if trait in self.available)
        flags = self._flags(trait)
        self.assertIn(wanted[trait], flags)


class HostCPUTestCase(base.HostTestCase):
    """What needs computes that differ, or the log of one."""

    def test_traits_choose_between_hosts_that_differ(self):
        hosts = self.hosts()
        if len(hosts) < 2:
            self.skipTest('It needs two computes')
        with_it, without = hosts[:2]
        trait = 'HW_CPU_X86_SSE42'
        # QEMU's default CPU has no SSE 4.2.
        self.change(without, {'kvm_ext': {'cpu_mode': 'none'}})
        self.wait('traits that differ', lambda:
                  trait in self.traits(with_it) - self.traits(without))
        for host, wanted in (with_it, 'required'), (without, 'forbidden'):
            flavor = self.make_flavor(extra_specs={f'trait:{trait}': wanted})
            for _ in range(2):
                server = self.boot(flavor=flavor)
                self.assertEqual(host, self.host_of(server), wanted)
            self.assertEqual(host == with_it,
                             'sse4_2' in self.report(server).cpu_flags)

    def test_mode_that_the_host_lacks(self):
        host = self.hosts()[0]
        available = self.traits(host)
        missing = [
            mode for mode in ('host-passthrough', 'maximum', 'host-model')
            if traits.name('cpu_mode', mode) not in available]
        if not missing:
            self.skipTest('The compute can give every mode')
        # Without the trait it gets there. Nova then tries other hosts, and
        # the API says no more than that there was none left.
        log = self.log_since(host)
        self.wait_for_status(self.ask_for(
            host=host, flavor=self.make_flavor(
                extra_specs={'kvm_ext:cpu_mode': missing[0]})), 'ERROR')
        self.assertRegex(log(), f'kvm_ext:cpu_mode = {missing[0]}: this host')
