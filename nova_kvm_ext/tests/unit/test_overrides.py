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

"""The contract that operators can check: what we override is still there."""

import inspect
from typing import Any

from nova.virt.libvirt import driver as libvirt_driver
from oslotest import base

from nova_kvm_ext import contract
from nova_kvm_ext import driver
from nova_kvm_ext.host import hooks


class Base:

    def same(self, one: int, two: int = 2) -> None:
        pass

    def moved(self, two: int, one: int) -> None:
        pass


class Ours(Base):

    def same(self, one: int, *args: Any, **kwargs: Any) -> None:
        super().same(one, *args, **kwargs)

    @hooks.explains_libvirt_errors
    def moved(self, one: int, two: int) -> None:
        super().moved(one, two)

    def gone(self) -> None:
        super().gone()  # type: ignore[misc]

    def own(self) -> None:
        self.same(1)


class ContractTestCase(base.BaseTestCase):

    def test_overrides(self):
        self.assertEqual(['same', 'moved', 'gone'],
                         [name for name, _ in contract.overrides(Ours)])

    def test_differences(self):
        path = f'{__name__}.Base'
        self.assertEqual(
            [f'{path}.moved takes self, two, one; we take self, one, two',
             f'{path}.gone is gone'], contract.differences((Ours,)))

    def test_public_signatures_are_novas(self):
        """As Nova's own test of its drivers compares them."""
        for name, _ in contract.overrides(driver.KVMDriver):
            if not name.startswith('_'):
                # All but the annotations.
                ours, novas = (inspect.getfullargspec(getattr(of, name))[:-1]
                               for of in (driver.KVMDriver,
                                          libvirt_driver.LibvirtDriver))
                self.assertEqual(novas, ours, name)

    def test_every_public_method_of_the_driver_is_an_override(self):
        found = {name for name, _ in contract.overrides(driver.KVMDriver)}
        self.assertLessEqual(
            {name for name in vars(driver.KVMDriver)
             if hasattr(libvirt_driver.LibvirtDriver, name) and
             callable(getattr(libvirt_driver.LibvirtDriver, name)) and
             not name.startswith('__')}, found)
