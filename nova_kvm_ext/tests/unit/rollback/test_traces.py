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

from nova_kvm_ext.rollback import traces

UUID = '00000000-0000-4000-8000-000000000001'
OURS = 'CUSTOM_KVM_EXT_VHOST_NET'


class ProvidersTestCase(base.BaseTestCase):

    def of(self, *names, name='compute1'):
        return traces.of_providers([
            traces.Provider(UUID, name, frozenset(names))])

    def test_nothing_of_ours(self):
        self.assertEqual((), self.of())
        self.assertEqual((), self.of('HW_CPU_X86_AVX2', 'CUSTOM_KVM_EXTRA'))

    def test_others_are_kept(self):
        trace, = self.of(OURS, 'HW_CPU_X86_AVX2', 'CUSTOM_GOLD')
        self.assertEqual(f'compute1 has {OURS}', trace.what)
        self.assertEqual(
            f'openstack --os-placement-api-version 1.6 resource provider '
            f'trait set --trait CUSTOM_GOLD --trait HW_CPU_X86_AVX2 {UUID}',
            trace.command)

    def test_no_other(self):
        trace, = self.of(OURS)
        self.assertEqual(
            f'openstack --os-placement-api-version 1.6 resource provider '
            f'trait delete {UUID}', trace.command)

    def test_long_names(self):
        for length, name in ((255, 'x' * 255), (256, 'x' * 252 + '...')):
            trace, = self.of(OURS, name='x' * length)
            self.assertEqual(f'{name} has {OURS}', trace.what)

    def test_few(self):
        for count, end in ((5, '_4'), (6, '_4 and 1 more')):
            trace, = self.of(*(f'{OURS}_{n}' for n in range(count)))
            self.assertTrue(trace.what.endswith(end), trace.what)

    def test_many(self):
        trace, = self.of(*(f'{OURS}_{n}' for n in range(7)))
        self.assertTrue(trace.what.endswith('_4 and 2 more'), trace.what)

    def test_every_provider(self):
        found = traces.of_providers(
            traces.Provider(str(n), f'host{n}', frozenset(
                {OURS} if n % 2 else {'CUSTOM_GOLD'})) for n in range(4))
        self.assertEqual(['host1', 'host3'],
                         [trace.what.split()[0] for trace in found])


class AskingTestCase(base.BaseTestCase):

    def flavors(self, **keys):
        return traces.of_flavors([traces.Asking('f1', 'big\x1b[31m', keys)])

    def test_flavor(self):
        trace, = self.flavors(**{
            'kvm_ext:cpu_mode': 'maximum', 'hw:cpu_policy': 'shared',
            f'trait:{OURS}': 'required', 'kvm_ext:vhost_queues': '2',
            f'trait_a:{OURS}': 'forbidden', 'trait:HW_CPU_X86_AVX': 'required'
        })
        self.assertEqual(
            'openstack flavor unset --property kvm_ext:cpu_mode '
            '--property kvm_ext:vhost_queues '
            f'--property trait:{OURS} --property trait_a:{OURS} f1',
            trace.command)
        self.assertTrue(trace.what.startswith('flavor big [31m has kvm_ext:'),
                        trace.what)

    def test_flavor_of_others(self):
        self.assertEqual((), self.flavors(**{
            'hw:cpu_mode': 'x', 'kvm_ext:misspelt': 'x',
            'trait:CUSTOM_KVM_EXTRA': 'required'}))

    def test_image(self):
        trace, = traces.of_images([traces.Asking("i'1", "a\nb", {
            'kvm_ext_cpu_model': 'EPYC', 'kvm_ext_quiesced': 'yes',
            'id': "i'1", f'trait:{OURS}': 'required'})])
        self.assertEqual(
            'openstack image unset --property kvm_ext_cpu_model '
            f'--property trait:{OURS} \'i\'"\'"\'1\'', trace.command)
        self.assertEqual(
            f'image a b has kvm_ext_cpu_model, trait:{OURS}', trace.what)

    def test_what_a_snapshot_says_of_itself_stays(self):
        self.assertEqual((), traces.of_images([
            traces.Asking('i', 'i', {'kvm_ext_quiesced': 'no'})]))

    def test_long_names(self):
        """A tenant gives a server and an image its name."""
        wish = {'kvm_ext:cpu_model': 'x'}
        longest = 'kvm_ext:cpu_' + 'x' * 68
        for key, shown in ((longest, longest),
                           (longest + 'x', longest[:77] + '...')):
            trace, = traces.of_servers([traces.Asking('i', 'n', {key: ''})])
            self.assertEqual(f'server n (i) has {shown}', trace.what)
        short = 'x' * 77 + '...'
        for length, name in ((80, 'x' * 80), (81, short)):
            trace, = traces.of_servers([
                traces.Asking(UUID + 'y', 'x' * length, wish)])
            self.assertEqual(f'server {name} ({UUID[:33]}...) has '
                             f'kvm_ext:cpu_model', trace.what)
            trace, = traces.of_flavors([
                traces.Asking('f', 'x' * length, wish)])
            self.assertEqual(f'flavor {name} has kvm_ext:cpu_model',
                             trace.what)

    def test_server(self):
        trace, = traces.of_servers([
            traces.Asking(UUID, 'web', {'kvm_ext:cpu_model': 'x86-64-v3',
                                        'kvm_ext:vhost_queues': '2'}),
            traces.Asking(UUID, 'db', {'kvm_ext:vhost_queues': '2'})])
        self.assertEqual(f'server web ({UUID}) has kvm_ext:cpu_model',
                         trace.what)
        self.assertEqual('', trace.command)
