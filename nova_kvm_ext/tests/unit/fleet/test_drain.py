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

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.fleet import drain
from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets

EPYC = definition.CPU(mode='custom', match='exact', model='EPYC',
                      vendor='AMD')
SMALL = definition.CPU(mode='custom', match='exact', model='kvm64')


def ways(named, *guests, host=None):
    return drain.ways(guests, fit.Fleet(kinds.group(named), hosts.MAP), host)


class WaysTestCase(base.BaseTestCase):

    def test_some_take_it(self):
        way, = ways([fleets.host('a'), fleets.host('b'),
                     fleets.host('c', lacks=('svm',))],
                    drain.Guest('one', EPYC), host='a')
        self.assertIs(True, way.possible)
        self.assertEqual((1, 0, ('b',)), (way.takes, way.unknown, way.hosts))
        self.assertEqual((('svm', 1),), way.keeping)
        self.assertEqual('1 of 2 hosts can run its CPU', way.reason)

    def test_nowhere(self):
        way, = ways([fleets.host('a'), fleets.host('c', lacks=('svm',))],
                    drain.Guest('one', EPYC), host='a')
        self.assertIs(False, way.possible)
        self.assertEqual((0, ()), (way.takes, way.hosts))
        self.assertIn('no other host', way.reason)

    def test_only_its_own_host(self):
        way, = ways([fleets.host('a')], drain.Guest('one', EPYC), host='a')
        self.assertIs(False, way.possible)

    def test_not_known(self):
        way, = ways([fleets.host('c', lacks=('svm',)), fleets.untold('d')],
                    drain.Guest('one', EPYC))
        self.assertIsNone(way.possible)
        self.assertEqual((0, 1), (way.takes, way.unknown))

    def test_guest_that_is_not_known(self):
        way, = ways([fleets.host('a'), fleets.host('b')],
                    drain.Guest('one', None, 'its host does not answer'))
        self.assertIsNone(way.possible)
        self.assertEqual((0, 2, (), ()), (way.takes, way.unknown, way.hosts,
                                          way.keeping))
        self.assertEqual('its host does not answer', way.reason)

    def test_guest_that_does_not_run(self):
        way, = ways([fleets.host('a'), fleets.host('b')],
                    drain.Guest('one', None, 'it is stopped', runs=False),
                    host='a')
        self.assertIs(True, way.possible)
        self.assertEqual((1, 0), (way.takes, way.unknown))

    def test_of_how_many_hosts(self):
        way, = ways([fleets.host('a'), fleets.host('b'),
                     fleets.untold('d'), fleets.host('c', lacks=('svm',))],
                    drain.Guest('one', EPYC))
        self.assertEqual((2, 1), (way.takes, way.unknown))
        self.assertEqual('2 of 4 hosts can run its CPU', way.reason)
        way, = ways([fleets.host('c', lacks=('svm',)), fleets.untold('d')],
                    drain.Guest('one', EPYC))
        self.assertEqual('no host is known to run its CPU; of 1 that is not '
                         'known', way.reason)

    def test_order(self):
        found = ways(
            [fleets.host('a', lacks=('svm',)), fleets.host('b', 'kvm64')],
            drain.Guest('far', SMALL), drain.Guest('who', None),
            drain.Guest('stuck', EPYC))
        self.assertEqual(['stuck', 'who', 'far'],
                         [way.guest.name for way in found])

    def test_names_of_hosts_are_some(self):
        way, = ways([fleets.host(f'h{n:02}') for n in range(20)],
                    drain.Guest('one', EPYC))
        self.assertEqual((20, 8), (way.takes, len(way.hosts)))
