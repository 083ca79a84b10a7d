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

"""Validates this driver's flavor extra specs in Nova's API.

If the package is installed on the host of nova-api, nova-api loads this module
and refuses a flavor with a misspelt name, or with a value that is invalid on
every host. It does not know what a single host can do. Found by the entry
point group nova.api.extra_spec_validators.
"""

from nova.api.validation.extra_specs import base

from nova_kvm_ext.cpu import choose
from nova_kvm_ext.migration import policy
from nova_kvm_ext import request
from nova_kvm_ext.vhost import queues

# Nova calls it by this name.
EXTRA_SPEC_VALIDATORS = [
    base.ExtraSpecValidator(
        name=request.EXTRA_SPEC_PREFIX + 'cpu_mode',
        description=(
            'The CPU mode of the guest. It overrides the one in nova.conf; '
            'the build fails where the host does not support it.'),
        value={
            'type': str,
            'description': 'A CPU mode',
            'enum': list(choose.MODES),
        },
    ),
    base.ExtraSpecValidator(
        name=request.EXTRA_SPEC_PREFIX + 'cpu_model',
        description=(
            'The CPU model of the guest: one that libvirt knows, or a level '
            'of the x86-64 ABI such as x86-64-v2. It means kvm_ext:cpu_mode '
            '= custom.'),
        value={
            'type': str,
            'description': 'A CPU model or level',
            'pattern': r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}',
        },
    ),
    base.ExtraSpecValidator(
        name=request.EXTRA_SPEC_PREFIX + queues.NAME,
        description=(
            'The most queues of a network interface with a tap or macvtap '
            'device, where multiqueue is enabled. At most one for each '
            'vCPU.'),
        value={
            'type': int,
            'description': 'A number of queues',
            'min': 1,
            'max': queues.KERNEL_LIMIT,
        },
    ),
    base.ExtraSpecValidator(
        name=request.EXTRA_SPEC_PREFIX + policy.NAME,
        description=(
            'What happens to a live migration of the guest that will not '
            'converge. It overrides the policy in nova.conf where [kvm_ext] '
            'migration_stalled_allowed has it.'),
        value={
            'type': str,
            'description': 'A policy',
            'enum': list(policy.POLICIES),
        },
    ),
]


def register() -> list[base.ExtraSpecValidator]:
    """What Nova asks for."""
    return EXTRA_SPEC_VALIDATORS
