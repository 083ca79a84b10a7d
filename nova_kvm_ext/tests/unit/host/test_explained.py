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

"""How errors of libvirt are explained; a process that may not start ends."""

import queue
import subprocess
import sys
import threading
import traceback
from typing import Any
from unittest import mock

import ddt
import fixtures
from nova.compute import utils as compute_utils
from nova import context
from nova import exception
from nova import objects
from nova import utils
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils

from nova_kvm_ext import driver
from nova_kvm_ext.host import hooks
from nova_kvm_ext.tests.unit import driver_base
from nova_kvm_ext.tests.unit.host import test_hooks

libvirt_error = test_hooks.libvirt_error

SAID = ("internal error: process exited while connecting to monitor: Could "
        "not access KVM kernel module: Permission denied")
PATH = '/srv/nova/instances/x/disk'
LOCKED = (f'internal error: Failed to get "write" lock\nIs another process '
          f'using the image [{PATH}]?')

# A service whose driver refuses. atexit shows that the interpreter ends as it
# should, its handlers included.
_REFUSED = """
import nova.cmd.compute
import atexit, inspect, sys
from nova import service
from nova.virt.libvirt import host
from oslo_service import service as oslo_service
from nova_kvm_ext.host import hooks
service.CONF([], project='nova', default_config_files=[])

class Refusing(oslo_service.Service):
    def start(self):
        with hooks.process_ends_unless_started(object()):
            raise ValueError('refused')

def main():
    atexit.register(print, 'ended by main')
    # As nova.cmd.compute has it: on threads in this very process.
    options = {'no_fork': True} if 'no_fork' in inspect.signature(
        service.serve).parameters else {}
    service.serve(Refusing(), workers=1, **options)
    service.wait()

sys.exit(main())
"""


class ProcessEndsTestCase(driver_base.DriverTestCase):
    """With the loop of Nova's own Host object, in a thread like Nova's."""

    def setUp(self):
        super().setUp()
        self.host = libvirt_host.Host.__new__(libvirt_host.Host)
        self.host._conn_event_handler_queue = queue.Queue()

    def _loop_ends(self, *, on_threads: bool, failing: bool) -> bool:
        self.useFixture(fixtures.MockPatchObject(
            utils, 'concurrency_mode_threading', lambda: on_threads,
            create=True))
        ended = threading.Event()

        def loop():
            try:
                self.host._conn_event_thread()
            except BaseException:
                ended.set()

        threading.Thread(target=loop, daemon=True).start()
        if failing:
            self.assertRaises(ValueError, self._fail)
        else:
            with hooks.process_ends_unless_started(self.host):
                pass
        return ended.wait(10 if on_threads and failing else 0.2)

    def _fail(self):
        with hooks.process_ends_unless_started(self.host):
            raise ValueError

    def test_ends_where_the_driver_does_not_start(self):
        self.assertTrue(self._loop_ends(on_threads=True, failing=True))

    def test_goes_on_where_it_starts(self):
        self.assertFalse(self._loop_ends(on_threads=True, failing=False))

    def test_goes_on_with_eventlet(self):
        self.assertFalse(self._loop_ends(on_threads=False, failing=True))

    def test_exit_code(self):
        """As nova-compute's entry script, with Nova's own launcher."""
        done = subprocess.run(
            [sys.executable, '-c', _REFUSED], capture_output=True, text=True,
            timeout=600)
        self.assertIn('ended by main', done.stdout, done.stderr)
        self.assertEqual(1, done.returncode, done.stderr)

    def test_driver_uses_it(self):
        self.useFixture(fixtures.MockPatchObject(
            utils, 'concurrency_mode_threading', lambda: True, create=True))
        refusing = driver.KVMDriver(fake.FakeVirtAPI())
        self.flags(cpu_mode='custom', group='kvm_ext')  # and no model
        refusing._host._conn_event_handler_queue = queue.Queue()
        self.assertRaises(exception.InvalidConfiguration,
                          refusing.init_host, 'here')
        self.assertIn(hooks._end_loop,
                      refusing._host._conn_event_handler_queue.queue)


@ddt.ddt
class ErrorsTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.driver = self.started()
        # Has its own tests, and here there is no port to look at.
        self.driver._vhost_net = mock.Mock()
        self.instance = self.make_instance()

    def raised(self, method: str, error: Exception, *args: Any) -> Any:
        """What comes out where Nova's own method raises an error."""
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, method, side_effect=error):
            return self.assertRaises(
                type(error), getattr(self.driver, method), *args)

    def test_a_known_error_keeps_all_that_nova_goes_by(self):
        error = libvirt_error(SAID, code=38)
        found = self.raised('_create_guest', error, None, '<domain/>',
                            self.instance)
        self.assertIs(error, found)
        self.assertEqual(38, found.get_error_code())
        self.assertEqual(SAID, str(found))

    def test_cause_and_remedy_in_the_log(self):
        self.raised('_create_guest', libvirt_error(SAID), None, '<domain/>',
                    self.instance)
        said = self.stdlog.logger.output
        self.assertIn('QEMU\'s user may not open', said)
        self.assertIn('udevadm trigger', said)
        self.assertIn('libvirt says: ' + SAID, said)

    def test_the_log_names_the_instance(self):
        for args, kwargs in (((None, '', self.instance), {}),
                             ((None, ''), {'instance': self.instance})):
            with mock.patch.object(hooks.LOG, 'error') as log, \
                    mock.patch.object(
                        libvirt_driver.LibvirtDriver, '_create_guest',
                        side_effect=libvirt_error(SAID)):
                self.assertRaises(
                    libvirt_driver.libvirt.libvirtError,
                    self.driver._create_guest, *args, **kwargs)
            self.assertIs(self.instance, log.call_args.kwargs['instance'])

    def test_fault(self):
        """Administrators see the details of a fault, tenants its message."""
        faults = []
        with mock.patch.object(objects.InstanceFault, 'create',
                               lambda fault: faults.append(fault)), \
                mock.patch.object(
                    libvirt_driver.LibvirtDriver, '_create_guest',
                    side_effect=libvirt_error(LOCKED)):
            try:
                self.driver._create_guest(None, '<domain/>', self.instance)
            except Exception as e:
                # As Nova's compute manager does.
                compute_utils.add_instance_fault_from_exc(
                    context.get_admin_context(), self.instance, e,
                    sys.exc_info())
        fault, = faults
        self.assertIn('Another process has this disk open', fault.details)
        self.assertIn('fuser or lsof', fault.details)
        self.assertIn(LOCKED, fault.details)
        self.assertEqual('libvirtError', fault.message)
        self.assertNotIn(PATH, fault.message)

    def test_a_build_that_fails(self):
        """There Nova shows a tenant the error's text: it is libvirt's."""
        error = self.raised('_create_guest', libvirt_error(SAID), None, '',
                            self.instance)
        try:
            try:
                raise error
            except Exception as e:
                raise exception.RescheduledException(
                    instance_uuid=self.instance.uuid, reason=str(e))
        except exception.RescheduledException as e:
            self.assertEqual(SAID, compute_utils.exception_to_dict(
                e, message=e.kwargs['reason'])['message'])
            self.assertIn('udevadm trigger',
                          ''.join(traceback.format_exception(e)))

    def test_an_unknown_error_passes_unchanged(self):
        error = libvirt_error('the moon is full')
        found = self.raised('_create_guest', error, None, '', self.instance)
        self.assertIs(error, found)
        self.assertEqual([], getattr(found, '__notes__', []))
        self.assertNotIn('moon', self.stdlog.logger.output)

    def test_what_is_no_libvirt_error_passes_unchanged(self):
        error = exception.InvalidInput(reason=SAID)
        found = self.raised('_create_guest', error, None, '', self.instance)
        self.assertIs(error, found)
        self.assertEqual([], getattr(found, '__notes__', []))

    def test_said_once(self):
        error = libvirt_error(SAID)
        hooks.explain_libvirt_error(error)
        hooks.explain_libvirt_error(error)
        note, = error.__notes__
        self.assertEqual(1, self.stdlog.logger.output.count('libvirt says'))

    def test_an_error_that_nova_made_another_of(self):
        """attach_interface raises Nova's own, with libvirt's behind it."""
        inner = libvirt_error("Cannot get interface MTU on 'br0': No such "
                              "device")
        outer = exception.InterfaceAttachFailed(instance_uuid='x')
        outer.__context__ = inner
        found = self.raised('attach_interface', outer, None, self.instance,
                            None, None)
        self.assertIs(outer, found)
        self.assertIn('Neutron agent',
                      ''.join(traceback.format_exception(found)))

    def test_every_way(self):
        for method, args in (
                ('attach_volume', (None, {}, self.instance, '/dev/vdb')),
                ('attach_interface', (None, self.instance, None, None)),
                ('_live_migration_operation', (
                    None, self.instance, 'dest', False, None, None, None)),
                ('_live_snapshot', (None, self.instance, None, *'12345')),
                ('_volume_snapshot_create', (
                    None, self.instance, mock.Mock(), 'id', 'file'))):
            found = self.raised(method, libvirt_error(SAID), *args)
            self.assertIn('udevadm', found.__notes__[0])

    @ddt.data('_create_image', 'snapshot')
    def test_errors_of_cephs_library(self, method):
        """Known by the module of their class."""
        error = type('PermissionDeniedError', (Exception,),
                     {'__module__': 'rados'})(
            '[errno 13] RADOS permission denied (error connecting to the '
            'cluster)')
        found = self.raised(method, error, None, self.instance, None, None)
        self.assertIs(error, found)
        self.assertIn('Ceph refuses the key', found.__notes__[0])
        said = self.stdlog.logger.output
        self.assertIn('ceph-key; Nova or Ceph says: [errno 13]', said)

    def test_addresses_of_monitors_for_a_guest_that_is_started_again(self):
        """Nova asks for them before libvirt and QEMU see the guest."""
        error = processutils.ProcessExecutionError(
            cmd='ceph mon dump --format=json', stderr='Error initializing '
            "cluster client: ObjectNotFound('RADOS object not found (error "
            "calling conf_read_file)')")
        found = self.raised('_get_guest_config', error, self.instance, None,
                            None, None)
        self.assertIn('finds no configuration', found.__notes__[0])

    def test_disk_that_cannot_be_removed(self):
        error = type('ImageBusy', (Exception,), {'__module__': 'rbd'})(
            '[errno 16] RBD image is busy (error removing image)')
        found = self.raised('_cleanup_rbd', error, self.instance)
        self.assertIn('has the image open', found.__notes__[0])

    @ddt.data(('get_available_resource', 'node'),
              ('update_provider_tree', None, 'node'))
    def test_errors_of_cephs_commands(self, call):
        """Nova does not tell what "ceph df" says, not even to an operator."""
        method, *args = call
        error = exception.StorageError(
            reason='Could not determine disk usage')
        error.__context__ = command = processutils.ProcessExecutionError(
            cmd='ceph df --format=json --id nova', exit_code=1, stdout='',
            stderr='2026-11-27T06:24:49.796+0000 7effa4d1b6c0  0 monclient'
            '(hunting): authenticate timed out after 300\n[errno 110] RADOS '
            'timed out (error connecting to the cluster)\n')
        self.assertIs(error, self.raised(method, error, *args))
        self.assertIn('No monitor of Ceph', command.__notes__[0])
        self.assertIn('(ceph-no-answer; Nova or Ceph says: 2026-11-27',
                      self.stdlog.logger.output)

    @ddt.data(
        processutils.ProcessExecutionError(
            cmd='qemu-img info x', stderr='RADOS timed out (error connecting '
            'to the cluster)'),
        processutils.ProcessExecutionError(cmd='ceph df'),
        processutils.ProcessExecutionError(cmd='ceph df', stderr='odd'))
    def test_errors_of_other_commands(self, error):
        found = self.raised('get_available_resource', error, 'node')
        self.assertFalse(hasattr(found, '__notes__'))

    def test_no_bindings_of_ceph(self):
        """Nova's own, a bare RuntimeError."""
        found = self.raised('_create_image', RuntimeError(
            'rbd python libraries not found'), None, self.instance, None)
        self.assertIn('python3-rados', found.__notes__[0])
        found = self.raised('_create_image', RuntimeError(
            'RADOS permission denied (error connecting to the cluster)'),
            None, self.instance, None)
        self.assertFalse(hasattr(found, '__notes__'))

    def test_through_novas_own_method(self):
        """Nova's _create_guest really lets libvirt's error through."""
        self.flags(swtpm_enabled=False, group='libvirt')
        with mock.patch.object(libvirt_guest.Guest, 'create',
                               side_effect=libvirt_error(SAID)):
            error = self.assertRaises(
                libvirt_driver.libvirt.libvirtError,
                self.driver._create_guest, None, '<domain/>', self.instance)
        self.assertIn('udevadm', error.__notes__[0])

    def test_start_up_without_libvirt(self):
        found = driver.KVMDriver(fake.FakeVirtAPI())
        error = libvirt_error("Failed to connect socket to '/run/libvirt/"
                              "libvirt-sock': No such file or directory")

        def refuse() -> None:
            raise exception.HypervisorUnavailable() from error

        with mock.patch.object(found._host, 'get_connection', refuse):
            self.assertRaises(exception.HypervisorUnavailable,
                              found.init_host, 'host')
        self.assertIn('systemctl start libvirtd', self.stdlog.logger.output)
