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

"""The driver has Nova ask qemu-img about a base image once."""

from collections.abc import Callable
import os
import shutil
import threading
from typing import Any
from unittest import mock

import fixtures
from nova import context
from nova.privsep import qemu
from nova.virt.disk import api as disk_api
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import utils as libvirt_utils
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.tests.unit import driver_base


class AskedOnceTestCase(driver_base.DriverTestCase):
    """Nova asks qemu-img about the same base again and again."""

    def setUp(self):
        super().setUp()
        self.drvr = self.started()
        self.base = os.path.join(driver.CONF.instances_path, '_base', 'base')
        self.disk = os.path.join(driver.CONF.instances_path, 'disk')
        os.mkdir(os.path.dirname(self.base))
        for path in (self.base, self.disk):
            with open(path, 'wb') as f:
                f.write(bytes(1 << 20))
        self.novas = self.useFixture(fixtures.MockPatchObject(
            qemu, 'unprivileged_qemu_img_info',
            return_value='{"format": "raw", "virtual-size": 1048576}')).mock

    def making_a_disk(self, do: Callable[[], Any],
                      drvr: Any = None) -> None:
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, '_try_fetch_image_cache',
                side_effect=lambda *args, **kwargs: do()):
            (drvr or self.drvr)._try_fetch_image_cache(
                mock.Mock(), mock.Mock(), None, 'base', uuids.image, None, 1)

    def ask(self) -> None:
        for path in (self.base, self.disk):
            self.assertEqual(1 << 20, disk_api.get_disk_size(path))

    def asked(self) -> list[str]:
        return [os.path.basename(call.args[0])
                for call in self.novas.call_args_list]

    def test_the_base_alone(self):
        for _ in range(2):
            self.making_a_disk(self.ask)
        self.assertEqual(['base', 'disk', 'disk'], self.asked())
        self.assertIs(self.novas, qemu.unprivileged_qemu_img_info)

    def test_nova_makes_the_disk(self):
        """With all of Nova's own code, and without qemu-img."""
        # Nova touches the base each time, as root.
        self.useFixture(fixtures.MockPatch(
            'nova.privsep.path.utime', side_effect=os.utime))
        made = self.useFixture(fixtures.MockPatch(
            'oslo_concurrency.processutils.execute',
            side_effect=lambda *command, **kwargs: shutil.copy(
                self.base, command[-2]))).mock
        for number in range(2):
            self.drvr._try_fetch_image_cache(
                imagebackend.Qcow2(path=f'{self.disk}{number}'),
                libvirt_utils.fetch_image,
                context.get_admin_context(), 'base', uuids.image,
                self.make_instance(), 1 << 20)
        self.assertEqual(['base'], self.asked())
        self.assertIn(f'backing_file={self.base}', str(made.call_args))

    def test_ephemeral_disks_and_swap(self):
        """With Nova's own code that makes them: three questions for each."""
        self.useFixture(fixtures.MockPatch(
            'nova.privsep.path.utime', side_effect=os.utime))
        self.useFixture(fixtures.MockPatch(
            'oslo_concurrency.processutils.execute',
            side_effect=lambda *command, **kwargs: shutil.copy(
                self.base, command[-2])))

        def make(drvr: Any, number: int) -> None:
            for name in ('ephemeral_1_ext4', 'swap_1'):
                imagebackend.Qcow2(path=f'{self.disk}-{name}-{number}').cache(
                    fetch_func=lambda target, **kwargs: shutil.copy(
                        self.base, target), filename=name, size=1 << 20,
                    safe=True)

        with mock.patch.object(libvirt_driver.LibvirtDriver, '_create_image',
                               new=make):
            for number in range(2):
                self.drvr._create_image(number)
            self.assertEqual(['ephemeral_1_ext4', 'swap_1'], self.asked())
            # Before the driver has started, as Nova has it.
            driver.KVMDriver(fake.FakeVirtAPI())._create_image(2)
        self.assertEqual(2 + 6, len(self.asked()))

    def test_a_directory_of_another_spelling(self):
        self.flags(subdirectory_name='_base//', group='image_cache')
        self.making_a_disk(self.ask)
        self.base = os.path.join(driver.CONF.instances_path, '_base//',
                                 'base')
        self.making_a_disk(self.ask)
        self.making_a_disk(self.ask)
        self.assertEqual(
            ['base', 'disk'] + ['base', 'disk'] + ['disk'], self.asked())

    def test_a_base_that_has_become_another(self):
        self.making_a_disk(self.ask)
        with open(self.base, 'r+b') as f:
            f.write(b'QFI\xfb')
        self.novas.return_value = '{"format": "qcow2", "virtual-size": 7}'
        self.making_a_disk(lambda: self.assertEqual(
            7, disk_api.get_disk_size(self.base)))

    def test_not_outside(self):
        self.making_a_disk(self.ask)
        self.ask()
        self.assertEqual(['base', 'disk', 'base', 'disk'], self.asked())

    def test_nothing_stays_after_a_failure(self):
        self.assertRaises(ZeroDivisionError, self.making_a_disk,
                          lambda: 1 / 0)
        self.assertIs(self.novas, qemu.unprivileged_qemu_img_info)

    def test_others_ask_nova(self):
        """Another driver, at the same time."""
        def meanwhile() -> None:
            self.ask()
            other = threading.Thread(target=self.ask)
            other.start()
            other.join(60)

        self.making_a_disk(meanwhile)
        self.assertEqual(['base', 'disk'] * 2, self.asked())

    def test_two_at_once(self):
        """The first to begin is the first to end."""
        begun, joined, ended = (threading.Event() for _ in range(3))

        def first() -> None:
            self.ask()
            begun.set()
            joined.wait(60)

        def second() -> None:
            joined.set()
            self.assertTrue(begun.wait(60))
            self.ask()
            ended.wait(60)
            self.ask()

        novas = libvirt_driver.LibvirtDriver._try_fetch_image_cache
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, '_try_fetch_image_cache',
                side_effect=lambda image, *args: image()):
            threads = [threading.Thread(
                target=self.drvr._try_fetch_image_cache, args=(
                    do, None, None, 'base', uuids.image, None, 1))
                for do in (second, first)]
            for thread in threads:
                thread.start()
            threads[1].join(60)
            self.assertIsNot(self.novas, qemu.unprivileged_qemu_img_info)
            ended.set()
            threads[0].join(60)
        self.assertIs(
            novas, libvirt_driver.LibvirtDriver._try_fetch_image_cache)
        self.assertIs(self.novas, qemu.unprivileged_qemu_img_info)
        self.assertEqual(['base', 'disk', 'disk', 'disk'], self.asked())

    def test_each_driver_remembers_for_itself(self):
        self.making_a_disk(self.ask)
        self.making_a_disk(self.ask, drvr=self.started())
        self.assertEqual(['base', 'disk'] * 2, self.asked())
