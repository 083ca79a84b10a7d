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

from keystoneauth1 import exceptions as keystone
from openstack import exceptions
from oslotest import base

from nova_kvm_ext.cpu import stored
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import cloud
from nova_kvm_ext.fleet import export
from nova_kvm_ext.tests.unit.fleet import fleets


class FakeCloud:
    """A cloud that answers what it is given, and remembers the questions."""

    def __init__(self, answers):
        self.compute = self
        self._answers = answers
        self.asked = []

    def get(self, path, microversion):
        self.asked.append((path, microversion))
        found = self._answers.get(path)
        if isinstance(found, Exception):
            raise found
        return mock.Mock(ok=found is not None, status_code=403,
                         reason='Forbidden', json=lambda: found)


def hypervisor(name, said, number=1):
    return {'id': f'id{number}', 'hypervisor_hostname': f'{name}.example',
            'service': {'host': name}, 'cpu_info': said}


class ReadTestCase(base.BaseTestCase):

    def read(self, hypervisors, aggregates=(), **kwargs):
        self.cloud = FakeCloud({
            '/os-hypervisors/detail?limit=200': {'hypervisors': hypervisors},
            '/os-aggregates': {'aggregates': list(aggregates)}})
        return cloud.read(self.cloud, **kwargs)

    def test_hosts(self):
        document = export.to_dict(fleets.host('own name'))
        found = self.read(
            [hypervisor('compute1', {export.MARK: document})],
            [{'name': 'ssd', 'hosts': ['compute1']},
             {'name': 'all', 'hosts': ['compute1', 'compute2']},
             {'name': 'none', 'hosts': None}])
        self.assertEqual(['compute1'], [host.host for host in found.hosts])
        self.assertEqual(fleets.host('a').cpu.digest,
                         found.hosts[0].cpu.digest)
        self.assertEqual((), found.refused)
        self.assertEqual({'compute1': ['ssd', 'all'], 'compute2': ['all']},
                         found.aggregates)
        self.assertEqual('2.87', self.cloud.asked[0][1])

    def test_computes_that_publish_nothing(self):
        found = self.read([
            hypervisor('nova', {'arch': 'x86_64'}), hypervisor('none', None),
            hypervisor('text', 'x'), hypervisor('odd', {export.MARK: {}}),
            hypervisor('list', {export.MARK: [1]})])
        self.assertEqual((), found.hosts)
        self.assertEqual(5, len(found.refused))
        for name, said in zip(('nova', 'none', 'text', 'odd', 'list'),
                              found.refused):
            self.assertIn(name, said)

    def test_name_without_a_service(self):
        one = hypervisor('x', {export.MARK: export.to_dict(
            fleets.host('x'))}) | {'service': None}
        self.assertEqual(['x.example'],
                         [host.host for host in self.read([one]).hosts])

    def test_pages(self):
        said = {export.MARK: export.to_dict(fleets.host('x'))}
        first = [hypervisor(f'h{n}', said, n) for n in range(200)]
        self.cloud = FakeCloud({
            '/os-hypervisors/detail?limit=200': {'hypervisors': first},
            '/os-hypervisors/detail?limit=200&marker=id199': {
                'hypervisors': [hypervisor('last', said)]},
            '/os-aggregates': {}})
        seen: list[int] = []
        found = cloud.read(self.cloud, seen.append)
        self.assertEqual(201, len(found.hosts))
        self.assertEqual('last', found.hosts[-1].host)
        self.assertEqual(list(range(1, 202)), seen)

    def test_pages_shorter_than_asked_for(self):
        """[api] max_limit of nova.conf may be lower."""
        said = {export.MARK: export.to_dict(fleets.host('x'))}
        self.cloud = FakeCloud({
            '/os-hypervisors/detail?limit=200': {
                'hypervisors': [hypervisor('first', said, 1)],
                'hypervisors_links': [{'rel': 'next', 'href': 'x'}]},
            '/os-hypervisors/detail?limit=200&marker=id1': {
                'hypervisors': [hypervisor('last', said, 2)],
                'hypervisors_links': [{'rel': 'next', 'href': 'x'}]},
            '/os-hypervisors/detail?limit=200&marker=id2': {
                'hypervisors': [], 'hypervisors_links': []},
            '/os-aggregates': {}})
        self.assertEqual(['first', 'last'], [
            host.host for host in cloud.read(self.cloud).hosts])

    def test_cloud_that_refuses(self):
        for answer, words in ((None, '403 Forbidden'),
                              (keystone.ConnectFailure('no route'),
                               'no route')):
            e = self.assertRaises(errors.InvalidRequest, cloud.read, FakeCloud(
                {'/os-hypervisors/detail?limit=200': answer}))
            self.assertIn(words, str(e))
            self.assertIn('/os-hypervisors/detail', str(e))


class GuestsTestCase(base.BaseTestCase):

    XML = ('<cpu mode="custom" match="exact"><model>EPYC</model>'
           '<feature policy="require" name="vme"/></cpu>')

    def guests(self, *answers, statuses=None):
        servers = [{'id': f'uuid{n}', 'name': f'vm{n}',
                    'status': statuses[n] if statuses else 'ACTIVE'}
                   for n in range(len(answers))]
        self.cloud = FakeCloud({
            '/servers/detail?all_tenants=1&host=compute1&limit=200':
                {'servers': servers}} | {
            f'/servers/uuid{n}/diagnostics': answer
            for n, answer in enumerate(answers)})
        return cloud.guests(self.cloud, 'compute1')

    def test_cpu(self):
        guest, = self.guests({stored.DIAGNOSTICS_KEY: self.XML, 'memory': 1})
        self.assertEqual('vm0 (uuid0)', guest.name)
        self.assertEqual(('EPYC', {'vme': 'require'}),
                         (guest.cpu.model, dict(guest.cpu.features)))
        self.assertEqual('2.47', self.cloud.asked[1][1])

    def test_cpu_that_is_not_known(self):
        found = self.guests(
            {}, {stored.DIAGNOSTICS_KEY: None},
            {stored.DIAGNOSTICS_KEY: '<cpu'}, None,
            keystone.ConnectFailure('gone'))
        for guest, words in zip(found, (
                'has not kept', 'has not kept', 'is not XML', '403',
                'gone')):
            self.assertIsNone(guest.cpu)
            self.assertTrue(guest.runs)
            self.assertIn(words, guest.why)

    def test_guests_that_do_not_run(self):
        found = self.guests({}, {stored.DIAGNOSTICS_KEY: self.XML},
                            statuses=['SHUTOFF', 'PAUSED'])
        self.assertEqual([False, True], [guest.runs for guest in found])
        self.assertIn('SHUTOFF', found[0].why)
        self.assertIsNotNone(found[1].cpu)
        self.assertEqual(2, len(self.cloud.asked))


class ConnectTestCase(base.BaseTestCase):

    def test_refused(self):
        for error in (exceptions.ConfigException('no such cloud'),
                      keystone.Unauthorized('wrong password')):
            with mock.patch('openstack.connect', autospec=True,
                            side_effect=error):
                e = self.assertRaises(errors.InvalidRequest, cloud.connect,
                                      'mine')
            self.assertIn('--os-cloud mine', str(e))
            self.assertIn(str(error.args[0]), str(e))

    def test_let_in(self):
        with mock.patch('openstack.connect', autospec=True) as connect:
            found = cloud.connect('mine')
        connect.assert_called_once_with(cloud='mine')
        found.authorize.assert_called_once_with()
