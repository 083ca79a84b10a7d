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
from typing import Any
from unittest import mock

import ddt
import fixtures
from nova import exception
from nova import objects
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver

from nova_kvm_ext import driver
from nova_kvm_ext import errors
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import hooks
from nova_kvm_ext.host import probe
from nova_kvm_ext.host import probe_answers
from nova_kvm_ext.tests.unit import driver_base

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


CEPH = verdict.CheckResult('KVM603', 'Secret of Ceph in libvirt', 'FAIL',
                           'libvirt has no secret', 'virsh secret-define')


class HostCheckTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.results = [PASSED]
        self.read_host = self.patch(facts, 'read_host')
        self.read_host.return_value.libvirt.error = ''
        self.read_again = self.patch(facts, 'read_again')
        # Whatever sudo the host of the tests has.
        self.read_program = self.patch(facts, 'read_program')
        self.read_program.return_value.path = '/usr/bin/sudo'
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
        self.read_program.return_value.path = None
        self.assertRaises(exception.InvalidConfiguration, self.start, HELPER)
        self.read_program.assert_called_with('sudo', '/')

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
