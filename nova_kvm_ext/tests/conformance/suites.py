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

"""Which of Nova's tests are run, and how they are loaded."""

from collections.abc import Iterable
import importlib
import os
import pkgutil
import unittest

from nova_kvm_ext.tests.conformance import differences

SET = 'NOVA_KVM_EXT_CONFORMANCE_SET'
"""Environment variable: ``commit`` (the default) or ``full``."""

UNIT = ('nova.tests.unit.virt.libvirt',
        'nova.tests.unit.virt.test_virt_drivers')

_LIBVIRT = 'nova.tests.functional.libvirt'
FUNCTIONAL = (_LIBVIRT,)
# What a change of ours is likely to break, in a few minutes.
FUNCTIONAL_PER_COMMIT = tuple(f'{_LIBVIRT}.test_{name}' for name in (
    'live_migration', 'machine_type', 'migration_addr', 'numa_live_migration',
    'power_manage', 'report_cpu_traits', 'rescue_deleted_base', 'reshape',
    'stateless_firmware', 'uefi', 'vif_model'))


def functional() -> tuple[str, ...]:
    """The functional tests of the set that is asked for."""
    return {'commit': FUNCTIONAL_PER_COMMIT,
            'full': FUNCTIONAL}[os.environ.get(SET, 'commit')]


def _modules(names: Iterable[str]) -> list[str]:
    """Test modules with these names, and those inside of packages."""
    found = []
    for name in names:
        path = getattr(importlib.import_module(name), '__path__', None)
        if path is None:
            found.append(name)
        else:
            found += [module.name for module in
                      pkgutil.walk_packages(path, f'{name}.')
                      if module.name.rpartition('.')[2].startswith('test_')]
    return found


def load(loader: unittest.TestLoader,
         names: Iterable[str]) -> unittest.TestSuite:
    """The tests of these modules and packages, under Nova's own ids."""
    return unittest.TestSuite(
        differences.mark(loader.loadTestsFromName(module), module)
        for module in _modules(names))
