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

"""Tests of the test guest's image builder.

Most use a made-up host; one builds and looks into a real image.
"""

import errno
import fcntl
import gzip
import lzma
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
from unittest import mock
from xml.etree import ElementTree

from oslo_utils.imageutils import format_inspector

from nova_kvm_ext.boot import testguest

INIT = pathlib.Path(testguest.__file__).with_name('testguest_init.sh')
CPU_MAP = '/usr/share/libvirt/cpu_map/x86_features.xml'
VERSION = '6.1.0-56-cloud-amd64'
MODULES_DEP = """\
kernel/virtio/virtio.ko.xz: kernel/virtio/virtio_ring.ko.xz
kernel/virtio/virtio_ring.ko.xz:
kernel/virtio/virtio_pci.ko.xz: kernel/virtio/virtio.ko.xz \
kernel/virtio/virtio_ring.ko.xz
kernel/virtio/virtio-rng.ko.gz: kernel/virtio/virtio.ko.xz \
kernel/virtio/virtio_ring.ko.xz
kernel/sound/soundcore.ko:
"""
MODULES = {
    'virtio/virtio.ko.xz': lzma.compress(b'virtio'),
    'virtio/virtio_ring.ko.xz': lzma.compress(b'ring'),
    'virtio/virtio_pci.ko.xz': lzma.compress(b'pci'),
    'virtio/virtio-rng.ko.gz': gzip.compress(b'rng'),
    'sound/soundcore.ko': b'sound',
}


# The build runs in `guest boot`'s own process, which Nova never patches. Under
# eventlet a thread that waits for a lock stops them all, and subprocess has
# two classes TimeoutExpired.
native_only = unittest.skipIf(
    'eventlet' in sys.modules and
    sys.modules['eventlet'].patcher.is_monkey_patched('thread'),
    'the build never runs under eventlet')


class TemporaryDirectoryCase(unittest.TestCase):

    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.cache = self.directory / 'cache'

    def patch(self, target, name, **kwargs):
        patcher = mock.patch.object(target, name, **kwargs)
        self.addCleanup(patcher.stop)
        return patcher.start()

    def cached_names(self):
        return {path.name for path in self.cache.iterdir()
                if path.name != '.testguest.lock'}


class FakeHostCase(TemporaryDirectoryCase):
    """A made-up root directory and tools that do nothing."""

    def setUp(self):
        super().setUp()
        self.root = self.directory / 'root'
        self.put('usr/bin/busybox', b'busybox')
        self.put('usr/sbin/qemu-ga', b'agent')
        self.put('usr/lib/syslinux/mbr/mbr.bin', b'mbr')
        self.put('tools/syslinux', b'syslinux')
        self.put_kernel(VERSION)
        self.which = self.patch(
            testguest.shutil, 'which',
            side_effect=lambda tool, path: str(self.root / 'tools' / tool))
        self.libraries = self.patch(
            testguest, '_libraries', side_effect=lambda path: {})
        self.patch(testguest, '_make_initrd', return_value='initrd')
        self.make_disk = self.patch(
            testguest, '_make_disk', side_effect=self.fake_disk)

    def put(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def put_kernel(self, version, name='boot/vmlinuz-{}'):
        self.put(name.format(version), version.encode())
        self.put(f'lib/modules/{version}/modules.dep', MODULES_DEP.encode())
        for path, content in MODULES.items():
            self.put(f'lib/modules/{version}/kernel/{path}', content)

    def fake_disk(self, inputs, initrd, work_dir):
        path = pathlib.Path(work_dir) / 'image'
        path.write_bytes(b'disk')
        return str(path)

    def build(self):
        return testguest.build(str(self.cache), root=str(self.root))

    def build_error(self):
        with self.assertRaises(testguest.BuildError) as caught:
            self.build()
        return str(caught.exception)


class TestBuild(FakeHostCase):

    def test_result(self):
        umask = os.umask(0o077)
        self.addCleanup(os.umask, umask)
        guest = self.build()
        self.assertRegex(guest.path, f'^{self.cache}/testguest-[0-9a-f]+.raw$')
        self.assertEqual(VERSION, guest.kernel)
        self.assertTrue(guest.agent)
        self.assertFalse(guest.cached)
        self.assertEqual(b'disk', pathlib.Path(guest.path).read_bytes())
        self.assertEqual(0o644, os.stat(guest.path).st_mode & 0o777)
        self.assertEqual(0o755, os.stat(self.cache).st_mode & 0o777)

    def test_work_is_done_where_a_rename_is_atomic(self):
        self.build()
        work_dir = pathlib.Path(self.make_disk.call_args.args[2])
        self.assertEqual(self.cache, work_dir.parent)

    def test_mode_of_an_existing_directory_is_kept(self):
        self.cache.mkdir()
        self.cache.chmod(0o1777)
        self.build()
        self.assertEqual(0o1777, self.cache.stat().st_mode & 0o7777)

    def test_second_build_is_cached_and_silent(self):
        first = self.build()
        progress = mock.Mock()
        second = testguest.build(
            str(self.cache), root=str(self.root), progress=progress)
        self.assertTrue(second.cached)
        self.assertEqual(first.path, second.path)
        self.assertEqual(1, self.make_disk.call_count)
        progress.assert_not_called()

    def test_cached_image_needs_no_right_to_write(self):
        self.build()
        with mock.patch.object(testguest, '_locked',
                               side_effect=PermissionError):
            self.assertTrue(self.build().cached)

    def test_every_input_counts(self):
        self.put('libc', b'libc')
        self.libraries.side_effect = lambda path: {
            '/lib/libc.so.6': str(self.root / 'libc')}
        paths = {self.build().path}
        for name in (f'boot/vmlinuz-{VERSION}', 'usr/bin/busybox',
                     'usr/sbin/qemu-ga', 'usr/lib/syslinux/mbr/mbr.bin',
                     'tools/syslinux', 'libc',
                     f'lib/modules/{VERSION}/kernel/virtio/virtio.ko.xz'):
            with self.subTest(name=name):
                self.put(name, b'changed')
                path = self.build().path
                self.assertNotIn(path, paths)
                paths.add(path)
        for name, value in (('_FORMAT', 1000), ('_BOOT_CONFIG', ''),
                            ('_SCRIPTS', {})):
            with self.subTest(name=name), mock.patch.object(
                    testguest, name, value):
                path = self.build().path
                self.assertNotIn(path, paths)
                paths.add(path)

    def test_what_is_not_an_input_does_not_count(self):
        self.build()
        self.put(f'lib/modules/{VERSION}/kernel/sound/soundcore.ko', b'new')
        os.utime(self.root / 'usr/bin/busybox', ns=(1, 1))
        self.assertTrue(self.build().cached)

    def test_older_images_go_after_success_only(self):
        old = self.build().path
        self.put('usr/bin/busybox', b'newer')
        for name in ('testguest-notes.raw', 'other.raw'):
            (self.cache / name).touch()
        self.make_disk.side_effect = testguest.BuildError('no')
        self.build_error()
        self.assertTrue(os.path.exists(old))
        self.make_disk.side_effect = self.fake_disk
        new = self.build().path
        self.assertEqual(
            {os.path.basename(new), 'testguest-notes.raw', 'other.raw'},
            self.cached_names())

    def test_leftovers_of_a_killed_build_go(self):
        (self.cache / '.testguest-killed' / 'tree').mkdir(parents=True)
        (self.cache / '.testguest-killed' / 'image').touch()
        guest = self.build()
        self.assertEqual({os.path.basename(guest.path)}, self.cached_names())

    @native_only
    def test_a_running_build_is_waited_for_and_left_alone(self):
        running = self.cache / '.testguest-running'
        running.mkdir(parents=True)
        results = []
        thread = threading.Thread(target=lambda: results.append(self.build()))
        with open(self.cache / '.testguest.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            thread.start()
            thread.join(0.3)
            self.assertTrue(thread.is_alive())
            self.assertTrue(running.exists())
            self.make_disk.assert_not_called()
        thread.join(10)
        self.assertFalse(results[0].cached)

    @native_only
    def test_two_builds_at_once_make_one_image(self):
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(self.build()))
            for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        self.assertEqual(1, self.make_disk.call_count)
        self.assertEqual([False, True, True, True],
                         sorted(result.cached for result in results))

    def test_full_disk(self):
        def full(inputs, initrd, work_dir):
            self.fake_disk(inputs, initrd, work_dir)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.make_disk.side_effect = full
        message = self.build_error()
        self.assertIn('No space left on device', message)
        self.assertIn(str(self.cache), message)
        self.assertIn('free 100 MB', message)
        self.assertEqual(set(), self.cached_names())

    def test_interrupted_build_leaves_nothing(self):
        self.make_disk.side_effect = KeyboardInterrupt
        self.assertRaises(KeyboardInterrupt, self.build)
        self.assertEqual(set(), self.cached_names())

    def test_cache_directory_cannot_be_made(self):
        self.cache.touch()
        message = self.build_error()
        self.assertIn(str(self.cache), message)
        self.assertIn('permissions', message)


class TestInputs(FakeHostCase):

    def test_all_that_is_missing_is_named_with_its_packages(self):
        shutil.rmtree(self.root)
        self.which.side_effect = lambda tool, path: None
        message = self.build_error()
        for words in ('kernel', 'busybox', 'mbr.bin', 'mcopy', 'syslinux',
                      'busybox-static', 'linux-image-amd64', 'mtools',
                      'syslinux-common', 'kernel-core', 'syslinux-nonlinux'):
            self.assertIn(words, message)
        self.assertNotIn('\n', message)
        self.assertFalse(self.cache.exists())

    def test_only_what_is_missing_is_named(self):
        (self.root / 'usr/bin/busybox').unlink()
        self.assertEqual(
            'The test guest cannot be built without busybox; install '
            'busybox-static (Debian) or busybox (Fedora).',
            self.build_error())

    def test_a_missing_agent_is_named_along_with_what_is_missing(self):
        (self.root / 'usr/bin/busybox').unlink()
        (self.root / 'usr/sbin/qemu-ga').unlink()
        self.assertEqual(
            'The test guest cannot be built without busybox; install '
            'busybox-static (Debian) or busybox (Fedora), and '
            'qemu-guest-agent for a guest with an agent.',
            self.build_error())

    def test_agent_may_be_missing(self):
        with_agent = self.build().path
        (self.root / 'usr/sbin/qemu-ga').unlink()
        guest = self.build()
        self.assertFalse(guest.agent)
        self.assertNotEqual(with_agent, guest.path)

    def test_newest_kernel_by_version(self):
        for version in ('6.1.0-9-amd64', '6.1.0-100-amd64', '5.10.0-999'):
            self.put_kernel(version)
        self.assertEqual('6.1.0-100-amd64', self.build().kernel)

    def test_kernel_without_image_or_modules_is_passed_over(self):
        self.put('boot/vmlinuz-7.0', b'no modules')
        self.put('lib/modules/7.1/modules.dep', b'')
        self.assertEqual(VERSION, self.build().kernel)

    def test_kernel_that_cannot_be_read_is_passed_over(self):
        self.put_kernel('7.0')
        access = os.access
        with mock.patch.object(
                testguest.os, 'access',
                lambda path, mode: 'vmlinuz-7.0' not in path and
                access(path, mode)):
            self.assertEqual(VERSION, self.build().kernel)

    def test_fedora_paths(self):
        for name in ('usr/bin/busybox', 'usr/lib/syslinux/mbr/mbr.bin',
                     'usr/sbin/qemu-ga'):
            (self.root / name).unlink()
        self.put('usr/sbin/busybox', b'busybox')
        self.put('usr/share/syslinux/mbr.bin', b'mbr')
        self.put('usr/bin/qemu-ga', b'agent')
        self.put_kernel('6.17.1-300.fc43.x86_64', 'lib/modules/{}/vmlinuz')
        guest = self.build()
        self.assertEqual('6.17.1-300.fc43.x86_64', guest.kernel)
        self.assertTrue(guest.agent)

    def test_modules_come_after_what_they_need(self):
        directory = self.root / 'lib/modules' / VERSION
        paths = testguest._find_modules(str(directory))
        self.assertEqual(
            [str(directory / 'kernel/virtio' / name) for name in (
                'virtio_ring.ko.xz', 'virtio.ko.xz', 'virtio_pci.ko.xz',
                'virtio-rng.ko.gz')],
            paths)
        self.assertEqual(
            [('virtio_ring.ko', b'ring'), ('virtio.ko', b'virtio'),
             ('virtio_pci.ko', b'pci'), ('virtio-rng.ko', b'rng')],
            [testguest._read_module(path) for path in paths])


class TestTools(TemporaryDirectoryCase):

    def libraries(self, stdout, stderr='', status=0):
        with mock.patch.object(
                testguest.subprocess, 'run',
                return_value=subprocess.CompletedProcess(
                    ['ldd', 'x'], status, stdout.encode(), stderr.encode())):
            return testguest._libraries('x')

    def test_libraries(self):
        self.assertEqual(
            {'/lib/x/libc.so.6': '/lib/x/libc.so.6',
             '/lib64/ld-linux.so.2': '/lib64/ld-linux.so.2'},
            self.libraries('\tlinux-vdso.so.1 (0x00007ffd)\n'
                           '\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f9f)\n'
                           '\t/lib64/ld-linux.so.2 (0x00007f9f)\n'))

    def test_library_variants_for_this_cpu_are_not_used(self):
        plain = self.directory / 'libz.so.1'
        output = (f'libz.so.1 => {self.directory}/glibc-hwcaps/x86-64-v3/'
                  'libz.so.1 (0x00007f9f)\n')
        plain.touch()
        self.assertEqual({str(plain): str(plain)}, self.libraries(output))
        plain.unlink()
        self.assertEqual(
            {str(plain):
             f'{self.directory}/glibc-hwcaps/x86-64-v3/libz.so.1'},
            self.libraries(output))

    def test_static_binary_has_no_libraries(self):
        self.assertEqual({}, self.libraries('\tstatically linked\n'))
        self.assertEqual({}, self.libraries(
            '', '\tnot a dynamic executable\n', status=1))

    def test_missing_library(self):
        self.assertRaisesRegex(
            testguest.BuildError, 'libz.so.1 => not found',
            self.libraries, '\tlibz.so.1 => not found\n')

    def test_ldd_fails(self):
        self.assertRaisesRegex(
            testguest.BuildError, 'ldd x failed with status 1, saying: oops',
            self.libraries, '', 'oops', status=1)

    def test_failing_tool_is_quoted(self):
        with self.assertRaises(testguest.BuildError) as caught:
            testguest._run(['sh', '-c', 'echo it broke >&2; exit 3'])
        self.assertIn('failed with status 3, saying: it broke.',
                      str(caught.exception))

    def test_absent_tool_is_named_with_its_package(self):
        self.patch(testguest, '_SBIN', new='')
        with mock.patch.dict(os.environ, PATH=str(self.directory)):
            self.assertRaisesRegex(
                testguest.BuildError, 'without zstd; install zstd',
                testguest._read_module, '/modules/virtio.ko.zst')

    @native_only
    def test_hanging_tool(self):
        self.patch(testguest, '_TOOL_TIMEOUT', new=0.1)
        self.assertRaisesRegex(
            testguest.BuildError, 'sleep did not finish in 0.1 s',
            testguest._run, ['sleep', '10'])

    def test_master_boot_record_passes_as_gpt(self):
        record = testguest._master_boot_record(b'code', 4096, 8192)
        self.assertEqual(512, len(record))
        inspector = format_inspector.GPTInspector()
        inspector.eat_chunk(record)
        self.assertTrue(inspector.format_match)
        inspector.safety_check()


class TestInit(unittest.TestCase):

    def test_syntax(self):
        subprocess.run(['sh', '-n', str(INIT)], check=True, timeout=10)

    def test_shutdown_does_what_the_agent_asks(self):
        for arguments, command in (('-h -P +0 bye', 'poweroff'),
                                   ('-h -r +0 bye', 'reboot'),
                                   ('-h -H +0 bye', 'halt'),
                                   ('-r +0', 'reboot'),
                                   ('', 'poweroff')):
            with self.subTest(arguments=arguments):
                # The functions stand in for the commands of those names.
                script = ''.join((
                    *(f'{name}() {{ echo {name} "$@"; }}\n'
                      for name in ('poweroff', 'reboot', 'halt')),
                    testguest._SCRIPTS['sbin/shutdown']))
                said = subprocess.run(
                    ['sh', '-c', script, 'shutdown', *arguments.split()],
                    check=True, capture_output=True, timeout=10)
                self.assertEqual(f'{command} -f', said.stdout.decode().strip())

    @staticmethod
    def reported():
        """The leaves and sub-leaves that the guest reports."""
        table = re.search(r"CPUID='(.*?)'", INIT.read_text(), re.DOTALL)
        reported = set()
        for line in table[1].splitlines():
            first, sub, count = (int(word, 16) for word in line.split())
            reported |= {(first + n, sub) for n in range(count)}
        return reported

    def test_cpuid_table_covers_those_of_new_libvirts(self):
        # x86_features.xml of libvirt 12.8, what that of 9.0 has not.
        self.assertLessEqual(
            {(0x1e, 1), (0x24, 0), (0x24, 1), (0x29, 0), (0xc0000001, 0)},
            self.reported())

    def test_cpuid_table_covers_libvirts_features(self):
        if not os.path.exists(CPU_MAP):
            self.skipTest(f'{CPU_MAP} is missing: install libvirt-daemon '
                          '(Debian) or libvirt-client (Fedora)')
        reported = self.reported()
        named = {(int(node.get('eax_in'), 16),
                  int(node.get('ecx_in', '0'), 16))
                 for node in ElementTree.parse(CPU_MAP).iter('cpuid')}
        self.assertTrue(named)
        self.assertEqual(set(), named - reported)


class TestRealImage(TemporaryDirectoryCase):

    def test_image(self):
        try:
            guest = testguest.build(str(self.cache))
        except testguest.BuildError as e:
            if 'install' not in str(e):
                raise
            self.skipTest(str(e))
        self.assertEqual({os.path.basename(guest.path)}, self.cached_names())

        # As nova.virt.images.get_image_format() does.
        with open(guest.path, 'rb') as image:
            wrapper = format_inspector.InspectWrapper(image)
            while image.peek():
                wrapper.read(4096)
            wrapper.close()
        self.assertEqual('gpt', str(wrapper.format))
        wrapper.format.safety_check()

        with open(guest.path, 'rb') as image:
            start, length = struct.unpack('<II', image.read(512)[470:478])
            image.seek(start * 512)
            data = self.directory / 'data'
            data.write_bytes(image.read(length * 512))
        # An ordinary user's path has no e2fsck.
        subprocess.run(['e2fsck', '-fn', data], check=True, timeout=30,
                       capture_output=True, env=os.environ | {
                           'PATH': f'{os.environ["PATH"]}:/usr/sbin:/sbin'})

        # SYSLINUX reads blocks by their number: no hole before the data.
        with open(guest.path, 'rb') as image:
            self.assertGreaterEqual(
                os.lseek(image.fileno(), 0, os.SEEK_HOLE), start * 512)
        partition = ['-i', f'{guest.path}@@{1024 * 1024}']
        for name in ('ldlinux.sys', 'syslinux.cfg', 'vmlinuz', 'initrd'):
            subprocess.run(['mcopy', *partition, f'::{name}', self.directory],
                           check=True, timeout=30)
        archive = gzip.decompress(
            (self.directory / 'initrd').read_bytes())
        for member in (
                b'init', b'bin/busybox', b'bin/insmod', b'sbin/shutdown',
                b'etc/fsfreeze-hook', b'lib/modules/order'):
            self.assertIn(member + b'\0', archive)
        self.assertIn(INIT.read_bytes(), archive)
        self.assertEqual(guest.agent, b'usr/sbin/qemu-ga\0' in archive)
