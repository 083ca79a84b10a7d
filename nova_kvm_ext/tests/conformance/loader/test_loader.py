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

"""One class of Nova's functional tests through Nova's real loader.

Nothing is swapped here: the services start as they would with
``compute_driver = kvm_ext.KVMDriver`` in nova.conf.
"""

from typing import Any

# First of all: they patch the standard library for eventlet, Nova 32's second.
import nova.tests.functional  # noqa: F401
import nova.test  # noqa: F401,H306

from nova.tests.functional.libvirt import test_uefi

from nova_kvm_ext import driver
from nova_kvm_ext.tests.conformance import steady
from nova_kvm_ext.vhost import vif

steady.steady()


class LoadedKVMDriverTestCase(test_uefi.UEFIServersTest):
    """Nova's tests of booting servers, with a driver that nova.conf names."""

    def _setup_compute_service(self) -> None:
        super()._setup_compute_service()
        self.flags(compute_driver='kvm_ext.KVMDriver')

    def start_compute(self, *args: Any, **kwargs: Any) -> str:
        host = super().start_compute(*args, **kwargs)
        loaded = self.computes[host].driver
        self.assertIs(driver.KVMDriver, type(loaded))
        self.assertIs(vif.KVMVIFDriver, type(loaded.vif_driver))
        return host
