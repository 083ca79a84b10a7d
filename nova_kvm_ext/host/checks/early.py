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

"""Whether a check can keep the service from starting, known early.

Reading all facts of the checks takes twice as long as Nova's own start, and on
most hosts no check says FAIL. If the facts that the driver already has prove
that no check that ends the service says FAIL, the checks run in the first
periodic update instead. In doubt they run at once.

Pure.
"""

from nova_kvm_ext.host import model

_KVM = ('With virt_type = qemu KVM is not used. Else a guest has run under '
        'KVM in this boot of the host, with the same QEMU, user and device.')
_VHOST_NET = 'vhost-net is not required, or guests are emulated.'
_TOLD = 'libvirt has told what guests of this type can have.'

RULED_OUT = {
    'KVM101': _KVM, 'KVM102': _KVM, 'KVM103': _KVM, 'KVM104': _KVM,
    'KVM202': _KVM, 'KVM204': _KVM, 'KVM205': _KVM,
    'KVM301': _VHOST_NET, 'KVM302': _VHOST_NET, 'KVM303': _VHOST_NET,
    'KVM403': 'The program is there, or none is run.',
    'KVM501': _TOLD, 'KVM502': _TOLD, 'KVM505': _TOLD,
    'KVM506': _KVM,
    'KVM507': 'The driver has chosen the CPU by the same function.',
    'KVM508': _KVM}
"""Why no check that ends the service says FAIL where :func:`settled`."""


def settled(known: model.EarlyFacts, helper: bool) -> bool:
    """Whether no check will end the service.

    :param helper: whether Nova runs oslo.privsep's command
    """
    runs = known.virt_type == 'qemu' or (
        known.virt_type == 'kvm' and known.vhost_net != 'require' and
        known.probe is not None and known.probe.runs is True)
    return bool(known.emulator) and runs and (not helper or all(
        program.path is not None for program in known.helper))
