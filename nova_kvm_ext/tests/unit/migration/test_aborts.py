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

"""What a live migration that is aborted ends with, in Nova's own code."""

import inspect
import threading
import time
from typing import Any
from unittest import mock

import fixtures
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import migration as libvirt_migration

from nova_kvm_ext.migration import policy
from nova_kvm_ext.tests.unit.migration import test_hooks

RAISES = 'future' in inspect.signature(
    libvirt_driver.LibvirtDriver._live_migration_monitor).parameters
"""Nova (32 and later) raises what its call of libvirt has raised."""

ABORTED = 78            # VIR_ERR_OPERATION_ABORTED
FAILED = 9              # VIR_ERR_OPERATION_FAILED

# Tests of Nova's monitor replace it, and greenlets take turns by it.
_sleep = time.sleep


def libvirt_error(code: int) -> Exception:
    error = libvirt_driver.libvirt.libvirtError(
        'operation aborted: migration out job: canceled by client')
    error.err = (code,)
    return error


class Domain(test_hooks.Domain):
    """A domain with the call that moves it, which returns when aborted.

    :ivar says: type of the job once it is aborted; NONE while libvirt ends it
    :ivar first: whether that call returns before Nova's monitor looks again
    :ivar active: whether the guest is still here then
    """

    def __init__(self, says: str = 'NONE', first: bool = True,
                 active: bool = True, code: int = ABORTED) -> None:
        super().__init__(test_hooks.fast(), 3)
        self._says = getattr(libvirt_driver.libvirt,
                             f'VIR_DOMAIN_JOB_{says}')
        self._first, self._active, self._code = first, active, code
        self._aborted = threading.Event()
        self.rolled_back = threading.Event()
        self.at: dict[int, Any] = {}
        self._looks = 0

    def jobStats(self) -> dict[str, Any]:
        _sleep(0.001)
        self._looks += 1
        self.at.get(self._looks, lambda: None)()
        if 'abort' in self.told:
            return {'type': self._says}
        return next(self._samples)

    def abortJob(self) -> None:
        super().abortJob()
        self._aborted.set()

    def migrateToURI3(self, *args: Any, **kwargs: Any) -> None:
        self._aborted.wait(60)
        if not self._first:
            self.rolled_back.wait(60)
        raise libvirt_error(self._code)

    def isActive(self) -> bool:
        return self._active


class AbortsTestCase(test_hooks.MigratingTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            libvirt_migration, 'get_updated_guest_xml', return_value='<x/>'))
        self.drvr = self.started(migration_stalled='abort')
        # Nova's fake one, in the place of the real one from here on.
        self.libvirt_error = libvirt_driver.libvirt.libvirtError
        self.post, self.recover = mock.Mock(), mock.Mock()

    def leave(self, domain: Domain) -> Domain:
        """Have Nova move a guest, from its start to its end."""
        drvr, instance = self.drvr, self.make_instance()

        def recover(*args: Any, **kwargs: Any) -> None:
            self.assertFalse(self.post.called)
            self.recover(*args, **kwargs)
            domain.rolled_back.set()

        operation, returned = (
            drvr._live_migration_operation, threading.Event())

        def operate(*args: Any) -> None:
            try:
                operation(*args)
            finally:
                returned.set()

        data = objects.LibvirtLiveMigrateData(
            migration=objects.Migration(self.ctx, id=1, status='running'),
            block_migration=False, serial_listen_addr='127.0.0.1',
            target_connect_addr=None)
        with (mock.patch.object(drvr._host, 'get_guest', return_value=(
                libvirt_guest.Guest(domain))),
              mock.patch.object(drvr, '_live_migration_operation', operate)):
            try:
                drvr.live_migration(self.ctx, instance, 'elsewhere',
                                    self.post, recover, False, data)
            finally:
                domain.rolled_back.set()
                # Nova 31 does not wait for it.
                self.assertTrue(returned.wait(60))
                self.assertEqual({}, drvr._migrations._moves)
                self.assertEqual({}, drvr._migrations._watches)
        return domain

    def assert_rolled_back(self, domain: Domain) -> None:
        self.recover.assert_called_once()
        self.post.assert_not_called()
        # By the policy, and not once more by Nova after the rollback.
        self.assertEqual(['abort'], domain.told)
        self.assertEqual(
            ['INFO Live migration aborted: the guest stays on this host '
             '([kvm_ext] migration_stalled = abort).'],
            self.lines('INFO Live migration aborted'))

    def assert_as_nova_has_it(self, domain: Domain) -> None:
        """Raised where Nova raises."""
        if RAISES:
            self.assertRaises(self.libvirt_error, self.leave, domain)
        else:
            self.leave(domain)
        self.recover.assert_called_once()

    def test_libvirts_call_returns_first(self):
        domain = self.leave(Domain())
        self.assert_rolled_back(domain)
        self.assertEqual({}, self.recover.call_args.kwargs)

    def test_the_job_is_seen_to_be_cancelled_first(self):
        domain = self.leave(Domain('CANCELLED', first=False))
        self.assert_rolled_back(domain)
        self.assertEqual({'migration_status': 'cancelled'},
                         self.recover.call_args.kwargs)

    def test_any_other_error(self):
        self.assert_as_nova_has_it(Domain(code=FAILED))

    def test_an_operator_aborts(self):
        self.drvr = self.started(migration_stalled='wait')
        domain = Domain()
        domain.at[5] = domain.abortJob
        self.assert_as_nova_has_it(domain)
        self.assertEqual([], self.lines('INFO Live migration aborted'))

    def test_an_operator_aborts_what_the_policy_could_not(self):
        for error in (self.libvirt_error('no'),
                      exception.InstanceNotFound(instance_id='x')):
            self.recover.reset_mock()
            domain = Domain()
            abort = domain.abortJob

            def fails(error: Exception = error, abort: Any = abort) -> None:
                if 'abort' not in domain.told:
                    raise error
                abort()

            domain.at[100] = abort
            with mock.patch.object(domain, 'abortJob', fails):
                self.assert_as_nova_has_it(domain)

    def test_the_guest_went_away_meanwhile(self):
        """Nova takes it for moved, so the error is all that says it is not."""
        self.assertRaises(
            self.libvirt_error, self.leave, Domain(active=False))
        self.post.assert_called_once()
        self.recover.assert_not_called()

    def test_a_rollback_that_fails(self):
        self.recover.side_effect = exception.NovaException('rollback')
        found = self.assertRaises(
            exception.NovaException, self.leave, Domain())
        self.assertEqual('rollback', str(found))

    def test_another_migration_of_the_guest(self):
        """One that begins while the end of the first one is handled."""
        first, second = (objects.LibvirtLiveMigrateData(
            migration=objects.Migration(self.ctx, id=number),
            block_migration=False) for number in (1, 2))
        migrations = self.drvr._migrations
        instance = self.make_instance()
        with (migrations.moving(first), migrations.moving(second),
              migrations.watching(
                  self.drvr, self.ctx, instance, mock.Mock(), mock.Mock(),
                  mock.Mock(), first) as (_, _, recovers)):
            migrations._watches[instance.uuid].acted = policy.ABORT
            error = libvirt_error(ABORTED)
            with migrations.operating(first):
                raise error
            self.assertIs(error, self.assertRaises(
                self.libvirt_error, self._operate, second, error))
            recovers()
        # Over, and nobody collects it any more.
        self.assertRaises(self.libvirt_error, self._operate, first, error)

    def _operate(self, migrate_data: Any, error: Exception) -> None:
        with self.drvr._migrations.operating(migrate_data):
            raise error
