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

from keystoneauth1 import exceptions
from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext.rollback import cloud as reader


def answer(said, ok=True):
    return mock.Mock(ok=ok, status_code=403, reason='Forbidden',
                     json=lambda: said)


class Client:
    """A service's client that answers by path."""

    def __init__(self, service_type, answers):
        self.service_type = service_type
        self.answers = answers
        self.asked = []

    def get(self, path, microversion):
        self.asked.append((path, microversion))
        found = self.answers[path]
        if isinstance(found, Exception):
            raise found
        return found


class CloudTestCase(base.BaseTestCase):

    def test_providers(self):
        placement = Client('placement', {
            '/resource_providers': answer({'resource_providers': [
                {'uuid': 'u1', 'name': 'host1'}]}),
            '/resource_providers/u1/traits': answer({'traits': ['A', 'B']})})
        done: list[int] = []
        found, = reader.providers(mock.Mock(placement=placement), done.append)
        self.assertEqual(('u1', 'host1', frozenset('AB')),
                         (found.uuid, found.name, found.traits))
        self.assertEqual([1], done)
        # Traits of providers came with it.
        self.assertEqual({'1.6'}, {version for _, version in placement.asked})

    def test_flavors_page_by_page(self):
        first = [{'id': str(n), 'name': 'f', 'extra_specs': {'a': n}}
                 for n in range(200)]
        compute = Client('compute', {
            '/flavors/detail?is_public=none&limit=200':
                answer({'flavors': first}),
            '/flavors/detail?is_public=none&limit=200&marker=199':
                answer({'flavors': [{'id': 'z', 'name': 'last'}]})})
        found = reader.flavors(mock.Mock(compute=compute))
        self.assertEqual(201, len(found))
        self.assertEqual({'a': '7'}, found[7].keys)
        self.assertEqual(('last', {}), (found[-1].name, found[-1].keys))

    def test_images_of_a_glance_with_a_limit_of_its_own(self):
        image = Client('image', {
            '/images?limit=200': answer({'images': [
                {'id': 'i1', 'name': None, 'kvm_ext_cpu_mode': 'maximum'}]}),
            '/images?limit=200&marker=i1': answer({'images': []})})
        found, = reader.images(mock.Mock(image=image))
        self.assertEqual('maximum', found.keys['kvm_ext_cpu_mode'])
        self.assertEqual('i1', found.id)

    def test_servers_of_a_host(self):
        compute = Client('compute', {
            '/servers/detail?all_tenants=1&host=a%26b&limit=200': answer({
                'servers': [
                    {'id': 's1', 'name': 'web', 'flavor': {
                        'extra_specs': {'kvm_ext:cpu_mode': 'maximum'}}},
                    {'id': 's2', 'name': 'db', 'flavor': {}}]})})
        found = reader.servers(mock.Mock(compute=compute), 'a&b')
        self.assertEqual([{'kvm_ext:cpu_mode': 'maximum'}, {}],
                         [server.keys for server in found])

    def test_no_answer(self):
        for said in (answer({}, ok=False), exceptions.ConnectFailure('down')):
            compute = Client('compute', {
                '/flavors/detail?is_public=none&limit=200': said})
            error = self.assertRaises(
                errors.InvalidRequest, reader.flavors,
                mock.Mock(compute=compute))
            self.assertIn('compute does not answer /flavors/detail: ',
                          str(error))
