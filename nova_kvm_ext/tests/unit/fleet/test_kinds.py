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

from unittest import mock

from oslotest import base

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.fleet import export
from nova_kvm_ext.fleet import kinds
from nova_kvm_ext.tests.unit.fleet import fleets


class CountsTestCase(base.BaseTestCase):

    def test_most_first_then_by_name(self):
        self.assertEqual(
            [('10.0', 3), ('7.2', 2), ('8.2', 2), ('9.0', 1)],
            list(kinds.counts(['9.0', '8.2', '10.0', '7.2', '10.0', '7.2',
                               '8.2', '10.0']).items()))

    def test_what_is_no_text(self):
        self.assertEqual(
            {'yes': 2, 'not known': 2, '1': 1, 'no': 1},
            kinds.counts([True, None, 1, False, None, True]))


class GroupTestCase(base.BaseTestCase):

    def test_hosts_of_one_kind(self):
        found = kinds.group([
            fleets.host('c', 'Nehalem'), fleets.host('b', qemu='10.0.0'),
            fleets.host('a', qemu='7.2.0')])
        self.assertEqual([('EPYC', 'AMD', 2), ('Nehalem', 'Intel', 1)],
                         [(k.model, k.vendor, k.count) for k in found])
        self.assertEqual(['a', 'b'], [h.host for h in found[0].hosts])

    def test_one_feature_is_another_kind(self):
        found = kinds.group([fleets.host('a'),
                             fleets.host('b', has=('pcid',))])
        self.assertEqual(2, len(found))

    def test_named_twice(self):
        found = kinds.group([fleets.host('a'), fleets.host('a', 'Nehalem')])
        self.assertEqual([('Nehalem', 1)],
                         [(kind.model, kind.count) for kind in found])

    def test_same_object_or_equal_one(self):
        one = fleets.host('a')
        same = export.Export('b', one.cpu)
        found = kinds.group([one, same, fleets.host('c')])
        self.assertEqual([3], [kind.count for kind in found])

    def test_order(self):
        found = kinds.group([
            fleets.host('a', 'Westmere'), fleets.host('b', 'Nehalem'),
            fleets.host('c'), fleets.untold('d')])
        self.assertEqual(['EPYC', 'EPYC', 'Nehalem', 'Westmere'],
                         [kind.model for kind in found])
        found = kinds.group([
            fleets.host('a', 'Westmere'), fleets.host('b', 'Nehalem'),
            fleets.host('c', 'Westmere')])
        self.assertEqual(['Westmere', 'Nehalem'],
                         [kind.model for kind in found])


class KindTestCase(base.BaseTestCase):

    def kind(self, *hosts):
        return kinds.group(hosts)[0]

    def test_level(self):
        self.assertEqual('x86-64-v3', self.kind(fleets.host('a')).level)
        self.assertEqual('x86-64-v2',
                         self.kind(fleets.host('a', 'Nehalem')).level)
        self.assertIsNone(self.kind(fleets.host('a', 'kvm64')).level)
        self.assertIsNone(self.kind(fleets.untold('a')).level)

    def test_nothing_told(self):
        kind = kinds.Kind(export.HostCPU(capabilities.DomainCapabilities()),
                          (fleets.host('a'),))
        self.assertIsNone(kind.model)
        self.assertIsNone(kind.vendor)

    def test_versions(self):
        kind = self.kind(
            fleets.host('a', kernel='6.1', nested=True),
            fleets.host('b', kernel='6.12', nested=False),
            fleets.host('c', kernel='6.12'))
        self.assertEqual([('6.12', 2), ('6.1', 1)],
                         list(kind.versions('kernel').items()))
        self.assertEqual({'no': 1, 'not known': 1, 'yes': 1},
                         dict(kind.versions('nested')))


class NamedTestCase(base.BaseTestCase):

    def test_names(self):
        found = kinds.group([fleets.host('a'), fleets.host('b', 'Nehalem')])
        names = kinds.named(found)
        self.assertEqual(list(found), list(names.values()))
        for name, kind in names.items():
            self.assertEqual(f'{kind.model}/{kind.digest[:4]}', name)

    def test_as_long_as_it_takes(self):
        found = [mock.Mock(spec=kinds.Kind, model=None,
                           digest=digest + '0' * 11)
                 for digest in ('abcde', 'abcdf')]
        self.assertEqual(['unknown/abcde', 'unknown/abcdf'],
                         list(kinds.named(found)))
