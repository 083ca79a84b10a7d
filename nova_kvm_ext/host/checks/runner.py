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

"""Runs the checks of a KVM host, in their order.

Pure: takes :class:`~nova_kvm_ext.host.model.HostFacts`, returns results. No
check prints, none raises, none reads the host. Causes come before their
consequences, so that the first FAIL is the one to repair.

A code never changes its meaning, and a code that is no longer used is not used
again. Every code is in doc/source/admin/troubleshooting.rst and
doc/source/cli/host.rst.
"""

from nova_kvm_ext import errors
from nova_kvm_ext.host.checks import device
from nova_kvm_ext.host.checks import kernel
from nova_kvm_ext.host.checks import libvirt
from nova_kvm_ext.host.checks import migration
from nova_kvm_ext.host.checks import nova
from nova_kvm_ext.host.checks import storage
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host.checks import vhost
from nova_kvm_ext.host import model

_GROUPS = [module.GROUP for module in (
    kernel, device, vhost, nova, libvirt, storage, migration)]
_CHECKS = [check for group in _GROUPS for check in group.checks]


def codes() -> dict[str, str]:
    """The title of each check by its code, in their order."""
    return {code: title for code, title, _ in _CHECKS}


def proofs() -> dict[str, str]:
    """What proves the FAIL of each check, '' for one that has none."""
    return {code: proof for group in _GROUPS
            for code, proof in group.proofs.items()}


def run(facts: model.HostFacts) -> list[verdict.CheckResult]:
    """Every check once, ordered by code. Never raises."""
    said = []
    for code, title, function in _CHECKS:
        one = function(facts)
        said.append(verdict.CheckResult(
            code, title, one.result, errors.clean(one.details, 500),
            one.remedy, one.fix))
    return said
