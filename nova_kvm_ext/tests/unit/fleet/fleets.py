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

"""Hosts of a fleet, for its tests: with the CPU map of the CPU's tests."""

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.fleet import export
from nova_kvm_ext.tests.unit.cpu import hosts


def host(name: str, model: str = 'EPYC', lacks: tuple[str, ...] = (),
         has: tuple[str, ...] = (), **versions) -> export.Export:
    """A host whose host-model is this model, less and more features."""
    return export.Export(name, export.of_capabilities(
        capabilities.parse(hosts.capabilities('kvm', model, lacks, has)),
        hosts.MAP), **versions)


def untold(name: str) -> export.Export:
    """A host that does not tell what its guests can have."""
    return export.Export(name, export.of_capabilities(
        capabilities.parse(hosts.capabilities()), None))
