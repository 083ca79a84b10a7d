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

"""The driver fetches images: all but qemu-img and Glance is real."""

import gzip
import os
import re
import threading
from typing import Any
from unittest import mock

import fixtures
from nova.compute import provider_tree
from nova import context
from nova import exception
from nova.virt import images
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import imagecache
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.images import convert
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import verdict
from nova_kvm_ext.metrics import names
from nova_kvm_ext.tests.unit import driver_base
from nova_kvm_ext.tests.unit.images import corpus

QED = corpus.qed().ljust(corpus._QED_SIZE, b'\0')
QCOW2 = corpus.qcow2()
VMDK = corpus.sparse_vmdk(corpus.descriptor())


class Backend(imagebackend.Flat):
    """Nova's cache without a disk."""

    def __init__(self) -> None:
        self.lock_path = os.path.join(driver.CONF.instances_path, 'locks')
        self.path = '/no/such'
        self.preallocate = False

    def exists(self) -> bool:
        return False

    def create_image(self, prepare_template: Any, base: str, size: Any,
                     safe: bool = False, *args: Any, **kwargs: Any) -> None:
        if not os.path.exists(base):
            prepare_template(target=base, *args, **kwargs)

    def resize_image(self, size: int) -> None:
        pass

    def get_disk_size(self, name: str) -> int:
        return 1 << 60


class FetchTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.drvr = self.started()
        self.base = os.path.join(driver.CONF.instances_path, '_base')
        self.name = imagecache.get_cache_fname(uuids.image)
        self.target = os.path.join(self.base, self.name)
        self.glance = self.useFixture(fixtures.MockPatchObject(
            images, 'IMAGE_API')).mock
        self.glance.download.side_effect = self.download
        self.info = self.useFixture(fixtures.MockPatchObject(
            qemu_img, 'info', side_effect=self.qemu_img_info)).mock
        self.inside = 'raw'
        self.copy_head = self.useFixture(fixtures.MockPatchObject(
            qemu_img, 'copy_head')).mock
        self.convert = self.useFixture(fixtures.MockPatchObject(
            convert, 'convert', side_effect=self.converted)).mock

    def image(self, disk_format: str, content: bytes) -> None:
        self.content = content
        self.glance.get.return_value = {
            'id': uuids.image, 'disk_format': disk_format}

    def download(self, ctx: Any, image_id: str, dest_path: str,
                 trusted_certs: Any) -> None:
        self.assertEqual(self.target + '.part', dest_path)
        with open(dest_path, 'wb') as f:
            f.write(self.content)

    def qemu_img_info(self, f: Any, limits: Any) -> verdict.Info:
        if isinstance(f.name, int):
            # The beginning of the disk.
            return verdict.Info(self.inside, 1 << 30)
        disk_format = self.glance.get()['disk_format']
        return verdict.Info(disk_format, 1 << 30,
                            create_type='monolithicSparse')

    def converted(self, f: Any, decided: verdict.Verdict, destination: str,
                  limits: Any, temporary: str, direct: bool) -> None:
        self.assertEqual(destination + '.converted', temporary)
        self.direct = direct
        with open(destination, 'wb') as out:
            out.write(f'{decided.disk_format} to {decided.converted_to}'
                      .encode())

    def boot(self, size: int | None = None, fetch: Any = None,
             drvr: Any = None) -> None:
        instance = mock.Mock(trusted_certs=mock.sentinel.certs,
                             vm_state='building', migration_context=None)
        (drvr or self.drvr)._try_fetch_image_cache(
            Backend(), fetch or libvirt_utils.fetch_image,
            context.get_admin_context(), self.name, uuids.image, instance,
            size)

    def cached(self) -> bytes:
        self.assertEqual([self.name], os.listdir(self.base))
        with open(self.target, 'rb') as f:
            return f.read()

    def refused(self, cls: type[Exception], **how: Any) -> str:
        error = self.assertRaises(cls, self.boot, **how)
        self.assertEqual([], os.listdir(self.base))
        self.assertNotIn(driver.CONF.instances_path, str(error))
        self.convert.assert_not_called()
        return str(error)

    def test_as_it_is(self):
        self.flags(force_raw_images=False)
        self.drvr = self.started()
        self.image('qcow2', QCOW2)
        self.boot()
        self.assertEqual(QCOW2, self.cached())
        self.assertEqual({}, self.counted(names.CONVERSIONS))
        # Nova's own way to check a signature.
        self.assertEqual(
            mock.sentinel.certs,
            self.glance.download.call_args.kwargs['trusted_certs'])

    def test_qed(self):
        for force_raw, wanted in ((True, b'qed to raw'),
                                  (False, b'qed to qcow2')):
            self.flags(force_raw_images=force_raw)
            self.drvr = self.started()
            self.image('qed', QED)
            self.boot()
            self.assertEqual(wanted, self.cached())
            os.unlink(self.target)
        self.assertEqual({('qed', 'converted'): 2},
                         self.counted(names.CONVERSIONS))
        # About the disk's content alone.
        for call in self.info.call_args_list:
            self.assertIsInstance(call.args[0].name, int)

    def test_vmdk_is_never_a_base(self):
        for force_raw, wanted in ((True, b'vmdk to raw'),
                                  (False, b'vmdk to qcow2')):
            self.flags(force_raw_images=force_raw)
            self.drvr = self.started()
            self.image('vmdk', VMDK)
            self.boot()
            self.assertEqual(wanted, self.cached())
            os.unlink(self.target)
        self.assertEqual({('vmdk', 'converted'): 2},
                         self.counted(names.CONVERSIONS))
        self.assertEqual({}, self.counted(names.REFUSALS))

    def test_lvm_takes_raw_only(self):
        self.flags(force_raw_images=False)
        self.flags(images_type='lvm', images_volume_group='vg',
                   group='libvirt')
        self.drvr = self.started()
        self.image('vmdk', VMDK)
        self.boot()
        self.assertEqual(b'vmdk to raw', self.cached())

    def test_in_the_cache_already(self):
        self.image('qed', QED)
        self.boot()
        self.boot()
        self.glance.download.assert_called_once()

    def test_wrongly_declared(self):
        self.image('raw', QCOW2)
        self.assertEqual(
            f'Image {uuids.image} is unacceptable: It is qcow2, not raw, as '
            f'declared. Upload it again with --disk-format qcow2.',
            self.refused(exception.ImageUnacceptable))
        self.assertEqual({('content',): 1}, self.counted(names.REFUSALS))
        self.assertEqual({}, self.counted(names.CONVERSIONS))

    def test_each_check_is_counted_by_its_name(self):
        """The check that the log names; those of a QED are one."""
        logged: dict[tuple[str, ...], int] = {}
        for image in corpus.images()[::3]:
            if (image.by_qemu or image.size > 1 << 24 or
                    len(image.declared) > 20):
                continue
            path = os.path.join(driver.CONF.state_path, 'image')
            image.write(path)
            with open(path, 'rb') as f:
                self.image(image.declared, f.read())
            with self.assertLogs('nova_kvm_ext', 'ERROR') as logs:
                self.refused(exception.ImageUnacceptable)
            check, = re.findall('the check "([^"]+)"', logs.output[-1])
            label = (re.sub('[ -]', '_', re.sub('^qed .*', 'qed', check)),)
            logged[label] = logged.get(label, 0) + 1
        self.assertEqual(logged, self.counted(names.REFUSALS))
        self.assertNotIn((names.OTHER,), logged)
        self.assertIn(('qed',), logged)
        self.assertGreater(len(logged), 8)

    def test_reason_is_whole_in_the_fault(self):
        """Nova keeps 255 characters of this."""
        for image in corpus.images():
            if (image.by_qemu or image.size > 1 << 24 or
                    len(image.declared) > 20):
                continue
            path = os.path.join(driver.CONF.state_path, 'image')
            image.write(path)
            with open(path, 'rb') as f:
                self.image(image.declared, f.read())
            said = self.refused(exception.ImageUnacceptable)
            fault = exception.BuildAbortException(
                instance_uuid=uuids.instance, reason=said)
            self.assertLessEqual(len(str(fault)), 255, image.name)
            self.assertNotIn('...', said)

    def test_declared_qed_and_none(self):
        self.image('qed', QCOW2)
        self.assertIn('It is qcow2, not qed',
                      self.refused(exception.ImageUnacceptable))

    def test_novas_own_inspection_has_a_say(self):
        self.image('qcow2', QCOW2)
        with mock.patch.object(
                images, 'do_image_deep_inspection',
                side_effect=exception.ImageUnacceptable(
                    image_id='1', reason='new check')) as inspect:
            self.assertIn('new check',
                          self.refused(exception.ImageUnacceptable))
        inspect.assert_called_once_with(
            self.glance.get(), uuids.image, self.target + '.part')
        self.assertEqual({(names.OTHER,): 1}, self.counted(names.REFUSALS))

    def test_larger_than_the_flavors_disk(self):
        """As Nova says it, and before the conversion."""
        self.image('qcow2', QCOW2)
        self.refused(exception.FlavorDiskSmallerThanImage,
                     size=(1 << 30) - 1)
        self.assertEqual({('flavor',): 1}, self.counted(names.REFUSALS))
        self.boot(size=1 << 30)

    def test_larger_than_allowed(self):
        self.drvr = self.started(image_max_virtual_gb='1')
        self.image('qcow2', QCOW2)
        self.info.side_effect = None
        self.info.return_value = verdict.Info('qcow2', (1 << 30) + 512)
        self.assertIn('image_max_virtual_gb',
                      self.refused(exception.ImageUnacceptable))
        self.assertEqual({('virtual_size',): 1},
                         self.counted(names.REFUSALS))

    def test_conversion_fails(self):
        self.image('qed', QED)
        self.convert.side_effect = convert.ConversionError('No luck.')
        error = self.assertRaises(exception.ImageUnacceptable, self.boot)
        self.assertIn('No luck.', str(error))
        self.assertEqual([], os.listdir(self.base))
        self.assertEqual({('qed', 'failed'): 1},
                         self.counted(names.CONVERSIONS))

    def test_what_is_not_the_images_fault(self):
        """Nova builds elsewhere: it gives up on what is an exception of its.

        nova/compute/manager.py, _do_build_and_run_instance: ImageUnacceptable
        and InvalidDiskInfo abort the build, what it does not know does not.
        """
        self.image('qed', QED)
        failure = qemu_img.QemuImgFailure(
            'qemu-img was ended by SIGABRT.', 'Free memory.')
        for mocked in (self.convert, self.copy_head):
            before, mocked.side_effect = mocked.side_effect, failure
            with self.assertLogs('nova_kvm_ext', 'ERROR') as logs:
                error = self.assertRaises(qemu_img.QemuImgFailure, self.boot)
            mocked.side_effect = before
            self.assertNotIsInstance(error, exception.NovaException)
            self.assertIn('SIGABRT. Free memory.', logs.output[-1])
            self.assertEqual([], os.listdir(self.base))
        # The second failed before the conversion.
        self.assertEqual({('qed', 'failed'): 1},
                         self.counted(names.CONVERSIONS))
        self.assertEqual({}, self.counted(names.REFUSALS))

    def test_novas_own_question_is_killed(self):
        self.image('raw', b'')
        for code, cls in ((-9, qemu_img.QemuImgFailure),
                          (-6, qemu_img.QemuImgFailure),
                          (1, exception.InvalidDiskInfo)):
            def ask(*args: Any, **kwargs: Any) -> None:
                try:
                    raise processutils.ProcessExecutionError(exit_code=code)
                except processutils.ProcessExecutionError:
                    raise exception.InvalidDiskInfo(reason='no answer')

            with mock.patch.object(Backend, 'create_image', side_effect=ask):
                error = self.assertRaises(cls, self.boot)
            self.assertIs(cls, type(error))

    def test_direct_io(self):
        self.image('qed', QED)
        for works in (True, False):
            with mock.patch('nova.privsep.utils.supports_direct_io',
                            return_value=works) as asked:
                self.boot()
            asked.assert_called_once_with(self.base)
            self.assertIs(works, self.direct)
            os.unlink(self.target)

    def test_a_disk_that_is_no_raw_base(self):
        """It stays a qcow2 where Nova would look at it again and refuse it."""
        self.inside = 'qcow2'
        self.image('qcow2', QCOW2)
        self.boot()
        self.assertEqual(QCOW2, self.cached())
        os.unlink(self.target)
        self.image('vmdk', VMDK)
        self.boot()
        self.assertEqual(b'vmdk to qcow2', self.cached())

    def test_a_disk_that_is_no_raw_disk(self):
        self.flags(images_type='raw', group='libvirt')
        self.drvr = self.started()
        self.inside = 'qcow2'
        self.image('qcow2', QCOW2)
        self.assertIn('an image within an image. Unpack it',
                      self.refused(exception.ImageUnacceptable))

    def test_compressed(self):
        self.image('raw', gzip.compress(b'disk'))
        self.assertIn('Upload what is inside: gzip -dc OLD > NEW',
                      self.refused(exception.ImageUnacceptable))

    def test_compressed_and_no_disk_to_boot_from(self):
        """With a kernel of its own a guest may do with it what it likes."""
        self.image('raw', gzip.compress(b'disk'))
        self.glance.get.return_value['properties'] = {'kernel_id': 'x'}
        self.boot()
        self.assertEqual(self.content, self.cached())

    def test_download_fails(self):
        self.image('qed', QED)
        self.glance.download.side_effect = exception.ImageNotFound(
            image_id='1')
        self.refused(exception.ImageNotFound)

    def test_paths_of_nova(self):
        self.image('raw', b'')
        path = os.path.join(self.base, 'abc')
        for error in (
                exception.InvalidDiskInfo(reason=f'failed on {path} : x'),
                exception.ImageUnacceptable(image_id='1', reason=path)):
            with mock.patch.object(Backend, 'create_image',
                                   side_effect=error):
                said = self.refused(type(error))
            self.assertIn('abc', said)

    def test_what_is_not_novas_plain_fetch(self):
        """rbd's, which clones, and those of tests."""
        self.image('qed', QED)
        fetch = mock.Mock(side_effect=lambda target, **kwargs: None)
        self.boot(fetch=fetch)
        self.assertEqual(self.target, fetch.call_args.kwargs['target'])
        self.glance.download.assert_not_called()

    def test_before_the_service_has_started(self):
        drvr = driver.KVMDriver(mock.Mock())
        self.image('qed', QED)
        error = self.assertRaises(exception.ImageUnacceptable, self.boot,
                                  drvr=drvr)
        self.assertIn('safety check', str(error))

    def test_with_the_workaround_all_is_novas(self):
        self.flags(disable_deep_image_inspection=True, group='workarounds')
        self.image('qed', QED)
        with mock.patch.object(images, 'fetch_to_raw') as fetch:
            self.boot()
        fetch.assert_called_once()
        self.assertEqual(set(), self.drvr._images.traits())
        self.assertFalse(self.drvr._images.cache(None, uuids.image))

    def test_ahead_of_the_first_boot(self):
        self.image('qed', QED)
        self.useFixture(fixtures.MockPatch('nova.privsep.path.utime'))
        self.assertTrue(self.drvr.cache_image(None, uuids.image))
        self.assertEqual(b'qed to raw', self.cached())
        self.assertFalse(self.drvr.cache_image(None, uuids.image))
        self.glance.download.assert_called_once()

    def test_two_at_once(self):
        """A boot waits while another thread fetches the image."""
        self.image('qed', QED)
        self.useFixture(fixtures.MockPatch('nova.privsep.path.utime'))
        fetching, go_on = threading.Event(), threading.Event()

        def download(ctx: Any, image_id: str, dest_path: str,
                     trusted_certs: Any) -> None:
            fetching.set()
            self.assertTrue(go_on.wait(60))
            self.download(ctx, image_id, dest_path, trusted_certs)

        self.glance.download.side_effect = download
        first = threading.Thread(
            target=self.drvr.cache_image, args=(None, uuids.image))
        first.start()
        self.assertTrue(fetching.wait(60))
        second = threading.Thread(target=self.boot)
        second.start()
        go_on.set()
        first.join(60)
        second.join(60)
        self.assertEqual(b'qed to raw', self.cached())
        self.glance.download.assert_called_once()


class TraitsTestCase(driver_base.DriverTestCase):

    def traits(self, drvr: driver.KVMDriver) -> set[str]:
        tree = provider_tree.ProviderTree()
        tree.new_root('node', uuids.node)
        tree.add_traits('node', 'CUSTOM_KVM_EXT_OLD', 'CUSTOM_THEIRS')
        with mock.patch('nova.virt.libvirt.driver.LibvirtDriver.'
                        'update_provider_tree') as novas:
            drvr.update_provider_tree(tree, 'node', {})
        novas.assert_called_once_with(tree, 'node', {})
        return {name for name in tree.data('node').traits
                if not name.startswith('CUSTOM_KVM_EXT_CPU_')}

    def test_both(self):
        drvr = self.started()
        self.assertEqual({'CUSTOM_KVM_EXT_IMAGE_TYPE_QED', 'CUSTOM_THEIRS'},
                         self.traits(drvr))
        self.assertTrue(
            drvr.capabilities_as_traits()['COMPUTE_IMAGE_TYPE_VMDK'])

    def test_operator_says_no(self):
        self.flags(image_type_exclude_list=['qed', 'vmdk'], group='compute')
        drvr = self.started()
        self.assertEqual({'CUSTOM_THEIRS'}, self.traits(drvr))
        self.assertFalse(
            drvr.capabilities_as_traits()['COMPUTE_IMAGE_TYPE_VMDK'])

    def test_no_vmdk_type_is_allowed(self):
        self.flags(vmdk_allowed_types=[], group='compute')
        self.assertFalse(self.started().capabilities[
            'supports_image_type_vmdk'])

    def test_rbd(self):
        self.flags(images_type='rbd', group='libvirt')
        with mock.patch('nova.virt.libvirt.imagebackend.Rbd'):
            drvr = self.started()
        self.assertEqual({'CUSTOM_THEIRS'}, self.traits(drvr))
