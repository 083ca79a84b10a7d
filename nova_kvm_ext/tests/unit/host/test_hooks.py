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

"""What happens to Nova's service, its errors and its records."""

import contextlib
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
from nova_kvm_ext import errors
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import hooks
from nova_kvm_ext.host import probe
from nova_kvm_ext.host import probe_answers
from nova_kvm_ext.tests.unit import driver_base

SAID = ("internal error: process exited while connecting to monitor: Could "
        "not access KVM kernel module: Permission denied")
PATH = '/srv/nova/instances/x/disk'
LOCKED = (f'internal error: Failed to get "write" lock\nIs another process '
          f'using the image [{PATH}]?')

PASSED = verdict.CheckResult('KVM101', 'CPU', verdict.PASS, 'it has it')
WARNED = verdict.CheckResult('KVM301', 'vhost_net', verdict.WARN,
                             'vhost_net is not loaded', 'modprobe vhost_net')
FAILED = verdict.CheckResult('KVM205', 'Use of /dev/kvm', verdict.FAIL,
                             'libvirt-qemu cannot open it',
                             'chmod 0660 /dev/kvm')
HELPER = verdict.CheckResult('KVM403', 'Helper', verdict.FAIL, 'no sudo')


def libvirt_error(text: str, code: int = 1) -> Any:
    """As libvirt makes it, by the module that the tests put in its place."""
    module = libvirt_driver.libvirt
    return module.make_libvirtError(
        module.libvirtError, text, error_code=code)


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
            timeout=120)
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


CEPH = verdict.CheckResult('KVM603', 'Secret of Ceph in libvirt', 'FAIL',
                           'libvirt has no secret', 'virsh secret-define')


class HostCheckTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.results = [PASSED]
        self.read_host = self.patch(facts, 'read_host')
        self.read_host.return_value.libvirt.error = ''
        self.read_again = self.patch(facts, 'read_again')
        self.run = self.patch(runner, 'run')
        self.run.side_effect = lambda found: list(self.results)
        self.flags(host_check='enforce', group='kvm_ext')

    def patch(self, where: Any, name: str) -> mock.Mock:
        return self.useFixture(fixtures.MockPatchObject(where, name)).mock


class AtStartTestCase(HostCheckTestCase):

    def test_a_good_host(self):
        found = self.started()
        args, kwargs = self.read_host.call_args
        self.assertEqual('kvm', args[0].settings.virt_type)
        self.assertEqual(found._host._uri, kwargs['uri'])
        self.assertIs(found._host.get_connection.__func__,
                      kwargs['connect'].__func__)
        self.assertEqual(driver.CONF.state_path, kwargs['cache_dir'])
        self.assertIn('Host check: 1 PASS, 0 WARN, 0 FAIL, 0 SKIP',
                      self.stdlog.logger.output)

    def test_auto_means_what_it_has_become(self):
        for runs, virt_type in ((False, 'qemu'), (True, 'kvm')):
            with mock.patch.object(probe_answers, 'cached_run',
                                   return_value=probe.ProbeResult(
                                       runs, 'so', 0.1)):
                found = self.started(virt_type='auto')
            found._host_check.finish()
            args, kwargs = self.read_host.call_args
            self.assertEqual(virt_type, args[0].settings.virt_type)
            self.assertEqual(driver.CONF.state_path if runs else None,
                             kwargs['cache_dir'])

    def test_software_needs_no_proof(self):
        self.started(virt_type='qemu')._host_check.finish()
        self.assertIsNone(self.read_host.call_args.kwargs['cache_dir'])

    def test_a_fail_stops_the_service(self):
        self.results = [PASSED, FAILED, HELPER]
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'init_host') as init_host:
            error = self.assertRaises(exception.InvalidConfiguration,
                                      self.started)
        init_host.assert_not_called()
        self.assertIsInstance(error.__cause__, errors.HostError)
        for text in (str(error), self.stdlog.logger.output):
            self.assertIn('KVM205 Use of /dev/kvm', text)
            self.assertIn('libvirt-qemu cannot open it', text)
            self.assertIn('chmod 0660 /dev/kvm', text)
            self.assertIn('host_check = warn', text)
        self.assertIn('and 1 more', str(error))
        self.assertIn('KVM403', self.stdlog.logger.output)

    def test_ceph_does_not(self):
        """Guests that boot from a volume may run."""
        self.results = [PASSED, CEPH]
        self.started()
        self.assertIn('ERROR', self.stdlog.logger.output)
        self.assertIn('KVM603', self.stdlog.logger.output)

    def test_a_warning_does_not(self):
        self.results = [PASSED, WARNED]
        self.started()
        self.assertIn('KVM301', self.stdlog.logger.output)
        self.assertIn('modprobe vhost_net', self.stdlog.logger.output)

    def test_warn(self):
        self.results = [FAILED]
        self.started(host_check='warn')
        self.assertIn('KVM205', self.stdlog.logger.output)

    def test_off(self):
        self.results = [FAILED]
        self.started(host_check='off')
        self.read_host.assert_not_called()
        self.assertNotIn('KVM205', self.stdlog.logger.output)

    def test_what_does_not_matter_to_a_driver_that_runs(self):
        for code in hooks._NO_MATTER:
            self.results = [verdict.CheckResult(code, 'x', verdict.FAIL, 'y')]
            self.started()

    def test_the_codes_exist(self):
        self.assertEqual(
            set(), {*hooks._NO_MATTER, hooks._PRIVSEP} - set(runner.codes()))

    def test_the_helper_matters_unless_it_is_not_used(self):
        self.results = [HELPER]
        self.assertRaises(exception.InvalidConfiguration, self.started)
        with mock.patch.object(
                hooks.nova.privsep.sys_admin_pctxt, 'client_mode', False):
            self.started()

    def test_paths_matter_without_a_file(self):
        with mock.patch.object(driver.CONF, 'config_file', [], create=True):
            self.started()
        self.assertTrue(self.read_host.call_args[0][0].files)

    def test_a_wrong_option_comes_first(self):
        self.results = [FAILED]
        error = self.assertRaises(
            exception.InvalidConfiguration, self.started, virt_type='qemu',
            cpu_mode='host-passthrough')
        self.assertIn('[kvm_ext] cpu_mode', str(error))
        self.read_host.assert_not_called()


SPACE = verdict.CheckResult('KVM405', 'Space', verdict.FAIL, 'it is full')


@ddt.ddt
class LateTestCase(HostCheckTestCase):
    """Where nothing can refuse, the first update checks."""

    def setUp(self):
        super().setUp()
        self.resources = self.patch(libvirt_driver.LibvirtDriver,
                                    'get_available_resource')
        self.enabled = self.patch(libvirt_driver.LibvirtDriver,
                                  '_set_host_enabled')
        self.patch(objects.Service, 'get_by_compute_host').side_effect = (
            exception.ComputeHostNotFound(host='host'))

    def said(self, word: str) -> int:
        return self.stdlog.logger.output.count(word)

    def start(self, *results: verdict.CheckResult, **kvm_ext: Any) -> Any:
        self.results = list(results) or [PASSED]
        return self.started(**{'virt_type': 'qemu'} | kvm_ext)

    def test_the_start_reads_nothing(self):
        self.start(WARNED)
        self.read_host.assert_not_called()
        self.assertEqual(0, self.said('Host check'))

    def test_said_once_by_the_first_update(self):
        found = self.start(WARNED, CEPH)
        seen = []
        self.resources.side_effect = lambda node: seen.append(
            self.said('KVM301'))
        for _ in range(3):
            found.get_available_resource('node')
        # Before Nova asks libvirt.
        self.assertEqual([1, 1, 1], seen)
        self.assertEqual(1, self.said('KVM603'))
        self.assertEqual(
            1, self.said('Host check: 0 PASS, 1 WARN, 1 FAIL, 0 SKIP'))
        self.read_host.assert_called_once()
        self.assertEqual(2, self.read_again.call_count)
        self.enabled.assert_not_called()

    def test_finish(self):
        """As guest boot does, which has no update."""
        found = self.start(WARNED)
        found._host_check.finish()
        found._host_check.finish()
        self.assertEqual(1, self.said('KVM301'))
        self.read_host.assert_called_once()

    def test_finish_after_a_start_that_checked(self):
        found = self.start(WARNED, virt_type='kvm')
        found._host_check.finish()
        self.read_host.assert_called_once()
        self.start(host_check='off')._host_check.finish()
        self.read_host.assert_called_once()

    def test_what_only_keeps_new_guests_away(self):
        found = self.start(SPACE)
        for number in (1, 2):
            found.get_available_resource('node')
            self.assertEqual(number, self.enabled.call_count)
        self.assertEqual(1, self.said('KVM405'))
        self.assertIs(False, self.enabled.call_args.args[0])
        self.results = [PASSED]
        found.get_available_resource('node')
        self.assertIn('Host check: repaired', self.stdlog.logger.output)

    def test_libvirt_is_away(self):
        """Nothing is concluded that no later update would ask again."""
        found = self.start(FAILED)
        self.read_host.return_value.libvirt.error = 'no connection'
        for _ in (1, 2):
            found.get_available_resource('node')
        self.enabled.assert_not_called()
        self.assertEqual(0, self.said('KVM205'))
        self.read_host.return_value.libvirt.error = ''
        found.get_available_resource('node')
        self.enabled.assert_called_once()
        self.assertEqual(1, self.said('KVM205'))

    def test_health(self):
        found = self.start(SPACE)
        health = found._health
        self.assertIsNone(health._state['host_check']['at'])
        found.get_available_resource('node')
        self.assertIn('KVM405', health._state['host_check']['fault'])

    def test_a_guest_that_ran_is_not_started_again(self):
        answer = probe.ProbeResult(True, 'it ran', 0.1)
        with mock.patch.object(
                probe_answers, 'kept_run', return_value=answer) as run:
            found = self.start(virt_type='kvm')
        self.read_host.assert_not_called()
        self.assertEqual(driver.CONF.state_path, run.call_args.kwargs[
            'cache_file'].rpartition('/')[0])
        found._host_check.finish()
        said = self.read_host.call_args.kwargs['tried']
        self.assertEqual((True, 'it ran'), (said.runs, said.reason))

    @ddt.data({'virt_type': 'kvm'},
              {'virt_type': 'kvm', 'vhost_net': 'off'})
    def test_in_doubt_the_start_checks(self, settings):
        """Here no guest has run."""
        self.assertRaises(exception.InvalidConfiguration, self.start, FAILED,
                          **settings)

    def test_no_helper(self):
        with mock.patch.object(facts, 'read_program',
                               return_value=mock.Mock(path=None)):
            self.assertRaises(exception.InvalidConfiguration, self.start,
                              HELPER)

    def test_libvirt_does_not_tell(self):
        """libvirt's error has its own line, and then the checks theirs."""
        with mock.patch(
                'nova.tests.fixtures.libvirt.Connection.'
                'getDomainCapabilities', side_effect=libvirt_error('no')), \
                mock.patch.object(libvirt_driver.LibvirtDriver, 'init_host'):
            self.start(WARNED)
        self.read_host.assert_called_once()

    def test_slow_libvirt(self):
        """The reason is said before Nova asks libvirt more."""
        with mock.patch.object(hooks, 'PROMPT', -1):
            self.start(WARNED)
        self.assertEqual(1, self.said('KVM301'))


class AgainTestCase(HostCheckTestCase):
    """The service record is the real object, its database a dictionary."""

    def setUp(self):
        super().setUp()
        self.record: dict[str, Any] = {
            'disabled': False, 'disabled_reason': None}
        self.patch(objects.Service, 'get_by_compute_host').side_effect = (
            self.get)
        self.status = self.patch(libvirt_driver.LibvirtDriver,
                                 '_update_compute_provider_status')
        self.resources = self.patch(libvirt_driver.LibvirtDriver,
                                    'get_available_resource')
        self.driver = self.started()

    def get(self, ctx: Any, host: str) -> objects.Service:
        service = objects.Service(ctx, host=host, **self.record)
        service.obj_reset_changes()

        def save() -> None:
            self.record = {name: service[name] for name in self.record}

        # An object of Nova's takes no attribute that is no field.
        object.__setattr__(service, 'save', save)
        return service

    def update(self, *results: verdict.CheckResult) -> Any:
        self.results = list(results) or [PASSED]
        return self.driver.get_available_resource('node')

    def test_novas_answer(self):
        for results in ((), (FAILED,)):
            self.assertIs(self.resources.return_value, self.update(*results))
            self.resources.assert_called_with('node')

    def test_asks_libvirt_nothing(self):
        before = self.read_host.call_count
        self.update()
        self.assertEqual(before, self.read_host.call_count)
        self.read_again.assert_called_once_with(self.read_host.return_value)

    def test_a_fault_disables_and_mending_enables(self):
        self.update(FAILED)
        self.assertTrue(self.record['disabled'])
        self.assertTrue(self.record['disabled_reason'].startswith(
            'AUTO: nova-kvm-ext: Host check KVM205'))
        self.assertIn('chmod 0660', self.record['disabled_reason'])
        self.update(PASSED, WARNED)
        self.assertEqual({'disabled': False, 'disabled_reason': None},
                         self.record)
        # Placement is told each time.
        self.assertEqual(2, self.status.call_count)

    def test_ceph_is_not_looked_at_again(self):
        """So it cannot be known to be repaired."""
        self.assertTrue(self.update(CEPH))
        self.assertFalse(self.record['disabled'])

    def test_said_once_each(self):
        for results in ((FAILED,), (FAILED,), (), ()):
            self.update(*results)
        self.assertEqual(2, self.stdlog.logger.output.count('KVM205'))
        self.assertIn('Host check: repaired', self.stdlog.logger.output)

    def test_disabled_before_libvirt_is_asked(self):
        """A libvirt whose QEMU may not open /dev/kvm takes minutes."""
        self.resources.side_effect = lambda node: self.assertTrue(
            self.record['disabled'])
        self.update(FAILED)

    def test_enabled_only_when_libvirt_answers(self):
        self.update(FAILED)
        self.resources.side_effect = exception.HypervisorUnavailable()
        self.assertRaises(exception.HypervisorUnavailable, self.update)
        self.assertTrue(self.record['disabled'])
        self.resources.side_effect = None
        self.update()
        self.assertFalse(self.record['disabled'])

    def test_an_operator_disabled_it(self):
        self.record = operators = {
            'disabled': True, 'disabled_reason': 'nova-kvm-ext: new disks'}
        for results in ((FAILED,), ()):
            self.update(*results)
            self.assertEqual(operators, self.record)

    def test_an_operator_disabled_it_without_a_reason(self):
        self.record = operators = {
            'disabled': True, 'disabled_reason': None}
        for results in ((FAILED,), ()):
            self.update(*results)
            self.assertEqual(operators, self.record)

    def test_nova_disabled_it(self):
        """Because it lost libvirt: Nova enables it again itself."""
        self.record = novas = {
            'disabled': True, 'disabled_reason': 'AUTO: Connection lost: 1'}
        for results in ((), (FAILED,), ()):
            self.update(*results)
            self.assertEqual(novas, self.record)

    def test_nova_enabled_it_when_libvirt_came_back(self):
        self.update(FAILED)
        self.driver._set_host_enabled(True)
        self.assertFalse(self.record['disabled'])
        self.update(FAILED)
        self.assertTrue(self.record['disabled'])

    def test_disabled_by_the_service_before_this_one(self):
        self.record = {'disabled': True,
                       'disabled_reason': 'AUTO: nova-kvm-ext: Host check'}
        self.update()
        self.assertFalse(self.record['disabled'])

    def test_a_good_host_costs_no_database_call(self):
        self.update()
        get = objects.Service.get_by_compute_host
        calls = get.call_count
        self.update()
        self.assertEqual(calls, get.call_count)

    def test_not_yet_registered(self):
        objects.Service.get_by_compute_host.side_effect = (
            exception.ComputeHostNotFound(host='host'))
        self.update()
        self.update(FAILED)
        objects.Service.get_by_compute_host.side_effect = self.get
        self.update(FAILED)
        self.assertTrue(self.record['disabled'])

    def test_a_long_reason_fits_novas_column(self):
        self.update(verdict.CheckResult(
            'KVM205', 'x', verdict.FAIL, 'y' * 500))
        self.assertEqual(255, len(self.record['disabled_reason']))

    def test_warn_says_and_leaves_the_service_alone(self):
        self.flags(host_check='warn', group='kvm_ext')
        self.update(FAILED)
        self.assertFalse(self.record['disabled'])
        self.assertIn('KVM205', self.stdlog.logger.output)
        self.update()
        self.assertIn('repaired', self.stdlog.logger.output)

    def test_off(self):
        self.read_again.reset_mock()
        found = self.started(host_check='off')
        self.results = [FAILED]
        found.get_available_resource('node')
        self.read_again.assert_not_called()
        self.assertFalse(self.record['disabled'])

    def test_before_init_host(self):
        """Nova's own tests ask a driver that was never started."""
        found = driver.KVMDriver(fake.FakeVirtAPI())
        with contextlib.ExitStack() as stack:
            stack.enter_context(found._host_check.again())
        self.read_again.assert_not_called()
