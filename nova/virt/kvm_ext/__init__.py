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

"""The door: the name that ``compute_driver = kvm_ext.KVMDriver`` loads.

Nova loads ``'nova.virt.' + compute_driver`` and nothing outside that
namespace, so this one module lives beside Nova's own files. Nothing else may
live here, and no ``__init__.py`` may ever be added to ``nova/`` or
``nova/virt/``: those files belong to Nova.
"""

from nova_kvm_ext.driver import KVMDriver

__all__ = ['KVMDriver']
