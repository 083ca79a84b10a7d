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

from nova_kvm_ext.cpu import cpu_map

FEATURES = b"""
<cpus>
  <!-- a comment -->
  <feature name='sse4.2'><cpuid eax_in='0x01' ecx='0x00100000'/></feature>
  <feature name='avx2'>
    <cpuid eax_in='0x07' ecx_in='0x00' ebx='0x00000020'/>
  </feature>
  <feature name='two'>
    <cpuid eax_in='0x01' ecx='0x1'/><cpuid eax_in='0x07' edx='0x1'/>
  </feature>
  <feature name='rdctl-no'><msr index='0x10a' edx='0x0' eax='0x1'/></feature>
</cpus>
"""
OLD = b"""
<cpus><model name='Old'>
  <signature family='6' model='30'/><signature family='6' model='46'/>
  <feature name='sse4.2'/><feature name='monitor' removed='yes'/>
</model></cpus>
"""
NEW = b"""
<cpus><model name='New'>
  <model name='Old'/>
  <feature name='avx2'/><feature name='two' added='yes'/>
</model></cpus>
"""
# Something in each that libvirt does not have.
ODD = (b'<cpus', b'', b'<cpus><feature/><model/><model name="\x3c"/></cpus>',
       b'<cpus><feature name="odd"><cpuid eax_in="x"/></feature></cpus>',
       b'<cpus><model name="A"><model name="B"/></model>'
       b'<model name="B"><model name="A"/><feature name="avx2"/></model>'
       b'<model name="C"><signature family="x" model="y"/></model></cpus>')


class CPUMapTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        # The derived model first: the order of files means nothing.
        self.map = cpu_map.parse([NEW, FEATURES, OLD])

    def test_feature(self):
        cpuid = {(1, 0): (0, 0, 0x00100001, 0), (7, 0): (0, 0, 0, 0)}
        self.assertIs(True, self.map.has_feature('sse4.2', cpuid))
        self.assertIs(False, self.map.has_feature('avx2', cpuid))

    def test_all_bits_count(self):
        for edx in (0, 1):
            cpuid = {(1, 0): (0, 0, 1, 0), (7, 0): (0, 0, 0, edx)}
            self.assertIs(bool(edx), self.map.has_feature('two', cpuid))

    def test_what_cannot_be_told(self):
        self.assertIsNone(self.map.has_feature('avx2', {(1, 0): 4 * (0,)}))
        self.assertIsNone(self.map.has_feature('no-such', {}))
        self.assertIsNone(self.map.has_feature('rdctl-no', {}))

    def test_models(self):
        """Neither what was removed from a model nor what was added later."""
        self.assertEqual({'sse4.2'}, self.map.models['Old'])
        self.assertEqual({'sse4.2', 'avx2'}, self.map.models['New'])
        self.assertEqual({(6, 30), (6, 46)}, self.map.signatures['Old'])
        self.assertEqual(frozenset(), self.map.signatures['New'])

    def test_what_is_odd_costs_itself(self):
        found = cpu_map.parse([NEW, *ODD, FEATURES, OLD])
        self.assertEqual(self.map.models['New'], found.models['New'])
        self.assertEqual({'avx2'}, found.models['A'])
        self.assertIn('odd', found.register_features)
        self.assertEqual(frozenset(), found.signatures['C'])

    def test_how_libvirt_compares(self):
        self.assertFalse(self.map.compares_by_qemu)
        self.assertEqual(frozenset(), self.map.strict_models)
        found = cpu_map.parse([
            b"<cpus><model name='Old'><check partial='compat'/></model>"
            b"<model name='New'/></cpus>"])
        self.assertTrue(found.compares_by_qemu)
        self.assertEqual({'New'}, found.strict_models)


class SignatureTestCase(base.BaseTestCase):

    def test_signatures(self):
        # Values that libvirt's own cpu_map names in its comments.
        for eax, wanted in ((0x106a5, (6, 26)),     # Nehalem
                            (0x800f10, (23, 1)),    # EPYC
                            (0x830f10, (23, 49)),   # EPYC-Rome
                            (0x543, (5, 4))):       # Pentium MMX
            self.assertEqual(wanted, cpu_map.signature(
                {(1, 0): (eax, 0, 0, 0)}))

    def test_unread(self):
        self.assertIsNone(cpu_map.signature({}))
