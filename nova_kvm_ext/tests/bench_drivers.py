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

"""The two drivers that the benchmarks hold against each other."""

from nova.virt.libvirt import driver as libvirt_driver

from nova_kvm_ext import driver

DRIVERS: dict[str, type[libvirt_driver.LibvirtDriver]] = {
    'LibvirtDriver': libvirt_driver.LibvirtDriver,
    'KVMDriver': driver.KVMDriver}
