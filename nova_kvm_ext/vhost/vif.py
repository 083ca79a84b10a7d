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

"""Nova's VIF driver with vhost-net named where the host has it.

Every interface of a guest comes through :meth:`KVMVIFDriver.get_config`, at
boot and when a port is attached, so this is the one place. Decides nothing:
see :mod:`nova_kvm_ext.vhost.policy`.
"""

from typing import Any

from nova.virt.libvirt import vif
from oslo_log import log as logging

from nova_kvm_ext import designer
from nova_kvm_ext.host import facts
from nova_kvm_ext.vhost import policy

LOG = logging.getLogger(__name__)


class KVMVIFDriver(vif.LibvirtGenericVIFDriver):
    """Names the vhost driver, which libvirt otherwise drops silently."""

    def get_config(self, instance: Any, vif: Any, image_meta: Any,
                   flavor: Any, virt_type: str) -> Any:
        """Nova's interface, with the driver decided.

        :returns: nova.virt.libvirt.config.LibvirtConfigGuestInterface, or a
            hostdev configuration, which is left alone
        """
        interface = super().get_config(
            instance, vif, image_meta, flavor, virt_type)
        decision = policy.decide(
            virt_type, getattr(interface, 'net_type', None),
            getattr(interface, 'model', None),
            facts.read_device('/dev/vhost-net'))
        designer.set_vhost(interface, decision)
        if decision.applies and not decision.vhost:
            LOG.warning('Interface %(mac)s does without vhost-net, on slower '
                        'userspace virtio: %(reason)s.',
                        {'mac': interface.mac_addr,
                         'reason': decision.reason}, instance=instance)
        return interface
