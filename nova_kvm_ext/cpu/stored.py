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

"""The exact CPU of a guest, as the driver keeps it with the instance.

Pure: takes Nova's object and asks nothing.
"""

from typing import Any

from nova_kvm_ext.cpu import definition
from nova_kvm_ext import words

DIAGNOSTICS_KEY = words.CPU_DIAGNOSTICS
"""The key of a guest's exact CPU among its server's diagnostics."""


def cpu_of(instance: Any) -> definition.CPU | None:
    """The CPU with which the instance's guest last started.

    :param instance: nova.objects.Instance
    :returns: None where this driver has not started it, or could not tell.
        With ``match`` minimum the guest has more than this: it was started
        with host-passthrough or maximum
    """
    stored = instance.vcpu_model
    if stored is None or stored.model is None or stored.topology is not None:
        return None
    return from_object(stored)


def from_object(stored: Any) -> definition.CPU:
    """A CPU of its object.

    :param stored: nova.objects.VirtCPUModel
    """
    return definition.CPU(
        mode='custom', model=stored.model, vendor=stored.vendor,
        # As libvirt has it in the XML of each guest that runs.
        fallback='forbid',
        match=stored.match, features=tuple(
            (feature.name, feature.policy) for feature in stored.features))
