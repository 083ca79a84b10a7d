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

"""What is said of a fleet, against libvirt's own test data.

Verdicts of two kinds, about the hosts of which libvirt has what QEMU gave:

* ``fleet baseline``: the baseline of two hosts has the features of the one
  that libvirt made of them, which cputest.c expects
* ``fleet takes``: whether one host takes the guests of another is answered
  from their exports alone, without any CPU map, as it is by the arithmetic,
  which other verdicts hold against libvirt
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import compare
from nova_kvm_ext.fleet import baseline
from nova_kvm_ext.fleet import export
from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds
from nova_kvm_ext.tests.libvirt_matrix import verdicts


def judge(source: Any) -> Iterator[verdicts.Verdict]:
    """The verdicts.

    :param source: documents.Source
    """
    models = tuple(capabilities.Model(name)
                   for name in source.x86_map.models)
    hosts = {
        name: dataclasses.replace(source.host('x86_64', cpu), models=models)
        for name, cpu in source.given()}
    yield from _baselines(source, hosts)
    yield from _takes(source, hosts)


def _exports(source: Any, hosts: dict[str, capabilities.DomainCapabilities]
             ) -> list[export.Export]:
    """As they come from files: written and read."""
    reader = export.Parser()
    return [reader.parse(export.to_json(export.Export(
        name, export.of_capabilities(caps, source.x86_map))).encode(), name)
        for name, caps in hosts.items()]


def _baselines(source: Any,
               hosts: dict[str, capabilities.DomainCapabilities]
               ) -> Iterator[verdicts.Verdict]:
    for row in source.rows:
        if row.kind != 'CPUID_BASELINE':
            continue
        label, *names = row.arguments
        found = baseline.of(fit.Fleet(kinds.group(_exports(
            source, {name: hosts[name] for name in names}))))
        theirs = source.cpu('x86_64', f'cpuid-baseline-{label}').features_by(
            source.x86_map)
        differ = sorted(found.features ^ theirs)
        yield verdicts.Verdict(
            source.version, 'fleet baseline', label, not differ, True,
            f'{found.model}, differs in {" ".join(differ)}' if differ else
            found.model)


def _takes(source: Any, hosts: dict[str, capabilities.DomainCapabilities]
           ) -> Iterator[verdicts.Verdict]:
    fleet = fit.Fleet(kinds.group(_exports(source, hosts)))
    for kind in fleet.kinds:
        host = kind.hosts[0].host
        cpu = hosts[host].host_model
        assert cpu is not None
        for other in fleet.kinds:
            there = other.hosts[0].host
            ours = fleet.takes(kind, other)
            theirs = compare.compare(cpu, hosts[there], source.x86_map)
            yield verdicts.Verdict(
                source.version, 'fleet takes', f'{host} to {there}',
                ours.possible, theirs.possible, ours.reason, theirs.reason)
