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

"""Where Nova's loader looks for the driver, and whether it finds the driver.

Every command checks this before it runs, so this module imports little.
"""

import importlib.util
import os

import nova_kvm_ext
from nova_kvm_ext.host import model


def find_door(package: str | None = None) -> str | None:
    """Where the part of this package is that Nova's loader looks for.

    :param package: directory of ``nova_kvm_ext``, None where there is none
    """
    if package is None:
        return None
    beside = os.path.join(os.path.dirname(package), 'nova', 'virt', 'kvm_ext')
    return beside if os.path.isdir(beside) else None


def read_install() -> model.InstallFacts:
    """Look whether Nova's loader would find ``nova.virt.kvm_ext``.

    Imports the ``nova`` and ``nova.virt`` packages, not the driver.
    """
    place = find_door(os.path.dirname(nova_kvm_ext.__file__))
    try:
        nova_virt = importlib.util.find_spec('nova.virt')
        found = importlib.util.find_spec('nova.virt.kvm_ext')
    except (ImportError, OSError) as e:
        # OSError where this user may not read what is installed.
        return model.InstallFacts((), place, str(e))
    directories = tuple(nova_virt.submodule_search_locations or ()
                        ) if nova_virt else ()
    return model.InstallFacts(
        directories, place,
        None if found else 'nova.virt has no module kvm_ext')
