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

"""Nova's VIF driver, with vhost-net and queues as this driver decides.

Nova calls :meth:`KVMVIFDriver.get_config` for every interface of a guest: at
boot, when a port is attached, when it is detached (Nova finds the interface by
the result) and when the source of a live migration writes the destination's
XML. So this method never refuses; :mod:`nova_kvm_ext.vhost.hooks` refuses when
a guest or a port starts.
"""

from typing import Any

from nova.virt.libvirt import vif

from nova_kvm_ext.vhost import hooks


class KVMVIFDriver(vif.LibvirtGenericVIFDriver):
    """Names the vhost driver, which libvirt otherwise drops silently."""

    def __init__(self, host: Any = None, *,
                 vhost_net: hooks.VhostNet | None = None) -> None:
        super().__init__(host)
        self._vhost_net = vhost_net or hooks.VhostNet()

    def get_config(self, instance: Any, vif: Any, image_meta: Any,
                   flavor: Any, virt_type: str) -> Any:
        """Nova's interface, with driver and queues decided.

        :returns: nova.virt.libvirt.config.LibvirtConfigGuestInterface, or a
            hostdev configuration, which is left alone
        """
        interface = super().get_config(
            instance, vif, self._vhost_net.image_of_tap(
                instance, vif, image_meta), flavor, virt_type)
        self._vhost_net.refine(
            interface, instance, vif, image_meta, flavor)
        return interface

    def plug(self, instance: Any, vif: Any) -> None:
        """Plug what the interface of :meth:`get_config` can open.

        A tap device with queues is not opened by an interface without, nor
        the other way round (Linux drivers/net/tun.c, tun_set_iff), and Nova
        makes it by flavor and image alone, whatever the virt_type, the model
        of the card (for OVS) and our own limits.
        """
        super().plug(self._vhost_net.as_plugged(
            instance, vif, self.get_config), vif)
