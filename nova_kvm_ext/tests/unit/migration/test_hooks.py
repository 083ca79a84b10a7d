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


"""Nova's own watch over a live migration, with verdicts and policies.

Nova's code runs as it is. libvirt's answers are those of a guest that is made
up (test_verdict), or recorded ones.
"""

import collections
import threading
from typing import Any
from unittest import mock

import fixtures
from nova import context
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest

from nova_kvm_ext.metrics import names
from nova_kvm_ext.migration import hooks
from nova_kvm_ext.tests.unit import driver_base
from nova_kvm_ext.tests.unit.migration import test_verdict

MIB = test_verdict.MIB
JOB_COMPLETED = 25      # VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, as any number

END = {'downtime': 87, 'memory_iteration': 3, 'data_processed': 96640826,
       'memory_bps': 8313865, 'time_elapsed': 13259}


class Domain:
    """A domain that is moved: answers, and remembers what it was told."""

    def __init__(self, samples: Any, end: int) -> None:
        self._samples = iter(samples)
        self._end = end
        self.told: list[Any] = []

    def jobStats(self) -> dict[str, Any]:
        if 'abort' in self.told:
            return {'type': libvirt_driver.libvirt.VIR_DOMAIN_JOB_CANCELLED}
        return next(self._samples, {'type': self._end})

    def migrateSetMaxDowntime(self, milliseconds: int, flags: int = 0
                              ) -> None:
        self.downtime = milliseconds

    def abortJob(self) -> None:
        self.told.append('abort')

    def suspend(self) -> None:
        self.told.append('pause')

    def state(self, flags: int) -> list[int]:
        return [3, 1] if 'pause' in self.told else [1, 1]

    def migrateStartPostCopy(self) -> None:
        self.told.append('post-copy')

    def UUIDString(self) -> str:
        return 'uuid'


class Done:
    """What says that libvirt's call has returned: an event up to Nova 31."""

    def done(self) -> bool:
        return True

    ready = done


def fast() -> Any:
    return test_verdict.Guest(test_verdict.writer(30, 64)).samples(150)


def stops() -> Any:
    return test_verdict.Guest(
        test_verdict.writer(30, 64),
        (60, test_verdict.verdict.Writer(MIB))).samples()


def idle() -> Any:
    return test_verdict.Guest(test_verdict.writer(0.2, 64)).samples()


class MigratingTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger(
            hooks.__name__, format='%(levelname)s %(message)s'))
        for target, name in ((objects.Instance, 'save'),
                             (objects.Migration, 'save'),
                             (libvirt_driver.time, 'sleep')):
            self.useFixture(fixtures.MockPatchObject(target, name))
        self.started_events, self.finished_events = (
            self.useFixture(fixtures.MockPatchObject(
                objects.InstanceActionEvent, name)).mock
            for name in ('event_start', 'event_finish'))
        self.ctx = context.get_admin_context()

    def events(self) -> list[str]:
        return [call.args[2].removeprefix('kvm_ext_migration_')
                for call in self.started_events.call_args_list]

    def lines(self, level: str) -> list[str]:
        return [line for line in self.log.output.splitlines()
                if line.startswith(level)]

    def move(self, samples: Any, drvr: Any = None, *, instance: Any = None,
             end: str = 'COMPLETED', post: Any = None) -> Domain:
        """Have Nova watch a migration."""
        drvr = drvr or self.started()
        instance = instance or self.make_instance()
        domain = Domain(samples, getattr(
            libvirt_driver.libvirt, f'VIR_DOMAIN_JOB_{end}'))
        drvr.active_migrations[instance.uuid] = collections.deque()
        migration = objects.Migration(self.ctx, id=1, status='running')
        # libvirt is asked about the domain by Nova's Host, not through it.
        with mock.patch.object(drvr._host, 'get_guest', return_value=(
                mock.Mock(_domain=domain))):
            drvr._live_migration_monitor(
                self.ctx, instance, libvirt_guest.Guest(domain), 'elsewhere',
                post or mock.Mock(), mock.Mock(), False,
                objects.LibvirtLiveMigrateData(
                    migration=migration, block_migration=False),
                Done(), [])
        self.assertEqual({}, drvr._migrations._watches)
        return domain

    def permit_post_copy(self, drvr: Any) -> None:
        flag = libvirt_driver.libvirt.VIR_MIGRATE_POSTCOPY
        drvr._live_migration_flags |= flag


class MigrationsTestCase(MigratingTestCase):

    def test_said_once_for_each_change(self):
        domain = self.move(stops())
        self.assertEqual([], domain.told)
        said = self.lines('INFO Live migration: ')
        self.assertEqual(2, len(said), said)
        self.assertIn('will not converge, iteration 3: the guest changed 8 '
                      'MiB/s of its memory', said[0])
        self.assertIn('will converge', said[1])
        self.assertEqual(['will_not_converge', 'will_converge'],
                         self.events())
        self.assertEqual(self.started_events.call_args_list,
                         self.finished_events.call_args_list)

    def test_not_known_is_said_by_the_third_iteration(self):
        self.move(test_verdict.Guest(test_verdict.writer(7, 64)).samples(
            60))
        said = self.lines('INFO Live migration: ')
        self.assertIn('not known, iteration 3', said[0])

    def test_a_change_of_mind_without_end_is_not_said_without_end(self):
        def fits() -> Any:
            for stats in fast():
                yield stats
            for n in range(5, 400):
                for at in (0, 1):
                    yield stats | {
                        'memory_iteration': n,
                        'time_elapsed': stats['time_elapsed'] + n * 9000 +
                        at * 8000, 'memory_remaining':
                            (64 if n % 2 else 1) * MIB * (1 - at),
                        'memory_processed': stats['memory_processed'] +
                        n * 64 * MIB}
        self.move(fits())
        self.assertLessEqual(len(self.events()), hooks._SAID_AT_MOST)
        self.assertGreater(len(self.events()), 2)

    def test_idle_guests_are_left_alone(self):
        for policy in ('wait', 'post-copy', 'pause', 'abort'):
            drvr = self.started(migration_stalled=policy)
            self.permit_post_copy(drvr)
            self.assertEqual([], self.move(idle(), drvr).told)
        self.assertEqual([], self.lines('WARNING'))

    def test_recorded_guests(self):
        # QEMU was told no downtime there; its own is another than Nova's.
        drvr = self.started(migration_stalled='pause')
        for trace in test_verdict.read_traces():
            with mock.patch.object(hooks.Watch, 'allow'):
                told = self.move(
                    [stats | {'type': 2} for stats in trace['samples']],
                    drvr).told
            if trace['kind'] == 'stops':
                # Some did so within the ten seconds.
                self.assertIn(told, ([], ['pause']))
            else:
                self.assertEqual(
                    ['pause'] if trace['kind'] == 'fast' else [],
                    told, trace['kind'])

    def test_wait(self):
        self.assertEqual([], self.move(fast()).told)
        self.assertEqual([], self.lines('WARNING'))

    def test_abort(self):
        drvr = self.started(migration_stalled='abort')
        self.assertEqual(['abort'], self.move(fast(), drvr).told)
        self.assertIn('it is aborted ([kvm_ext] migration_stalled = abort)',
                      self.lines('WARNING')[0])

    def test_an_abort_that_fails_is_tried_again(self):
        drvr = self.started(migration_stalled='abort')
        with mock.patch.object(
                Domain, 'abortJob',
                side_effect=libvirt_driver.libvirt.libvirtError('no')) as no:
            self.move(fast(), drvr)
        self.assertEqual(hooks._TRIES, no.call_count)
        # Not with each iteration: as long after the last as before the first.
        self.assertNotIn('no longer judged', self.log.output)

    def test_migration_that_ends_before_the_abort(self):
        """Neither a traceback nor an error: there is nothing to abort."""
        drvr = self.started(migration_stalled='abort')
        post = mock.Mock()
        with mock.patch.object(
                Domain, 'abortJob', side_effect=exception.InstanceNotFound(
                    instance_id='x')):
            self.move(fast(), drvr, post=post)
        post.assert_called_once()
        self.assertNotIn('no longer judged', self.log.output)
        self.assertNotIn('by policy', self.lines(
            'INFO Live migration completed')[0])

    def test_migration_that_nova_no_longer_has(self):
        for wanted in ('pause', 'post-copy'):
            drvr = self.started(migration_stalled=wanted)
            self.permit_post_copy(drvr)
            with mock.patch.object(
                    drvr, 'live_migration_force_complete',
                    side_effect=exception.NoActiveMigrationForInstance(
                        instance_id='x')):
                self.move(fast(), drvr)
        self.assertNotIn('no longer judged', self.log.output)

    def test_switch_to_post_copy_that_fails_is_tried_again(self):
        drvr = self.started(migration_stalled='post-copy')
        self.permit_post_copy(drvr)
        with mock.patch.object(
                Domain, 'migrateStartPostCopy', side_effect=[
                    libvirt_driver.libvirt.libvirtError('no'), None]) as no:
            self.move(fast(), drvr)
        self.assertEqual(2, no.call_count)

    def test_pause(self):
        drvr = self.started(migration_stalled='pause')
        self.assertEqual(['pause'], self.move(fast(), drvr).told)
        self.assertIn('the guest is paused until it has moved, some 7.8 to '
                      '15.8 s', self.lines('WARNING')[0])

    def test_pause_is_no_post_copy_where_that_is_permitted(self):
        drvr = self.started(migration_stalled='pause')
        self.permit_post_copy(drvr)
        self.assertEqual(['pause'], self.move(fast(), drvr).told)

    def test_post_copy(self):
        drvr = self.started(migration_stalled='post-copy')
        self.permit_post_copy(drvr)
        self.assertEqual(['post-copy'], self.move(fast(), drvr).told)
        self.assertIn('switched to post-copy', self.lines('WARNING')[0])

    def test_post_copy_that_is_not_permitted_is_no_pause(self):
        drvr = self.started(migration_stalled='post-copy')
        self.assertEqual([], self.move(fast(), drvr).told)
        warned, = self.lines('WARNING')
        self.assertIn('live_migration_permit_post_copy', warned)

    def test_post_copy_of_a_guest_that_is_paused(self):
        drvr = self.started(migration_stalled='post-copy')
        self.permit_post_copy(drvr)
        instance = self.make_instance()
        instance.vm_state = 'paused'
        self.assertEqual([], self.move(fast(), drvr, instance=instance).told)

    def test_flavor_and_image_ask(self):
        drvr = self.started(migration_stalled_allowed=['pause'])
        for instance in (
                self.make_instance(
                    extra_specs={'kvm_ext:migration_stalled': 'pause'}),
                self.make_instance({'kvm_ext_migration_stalled': 'pause'})):
            self.assertEqual(['pause'], self.move(
                fast(), drvr, instance=instance).told)
        told = self.move(fast(), drvr, instance=self.make_instance(
            {'kvm_ext_migration_stalled': 'abort'})).told
        self.assertEqual([], told)
        self.assertIn('abort is not allowed here', self.log.output)

    def test_each_guest_has_its_own_policy(self):
        """Two at a time, and Nova asks for flags without an instance."""
        drvr = self.started(migration_stalled_allowed=['pause', 'post-copy'])
        self.permit_post_copy(drvr)
        both = threading.Barrier(2, timeout=60)
        told: dict[str, list[Any]] = {}

        def samples() -> Any:
            for stats in fast():
                if stats['memory_iteration'] < 6:
                    both.wait()
                yield stats

        def run(policy: str) -> None:
            instance = self.make_instance(
                extra_specs={'kvm_ext:migration_stalled': policy})
            instance.uuid = driver_base.uuids.__getattr__(policy)
            domain = Domain(samples(), 3)
            drvr.active_migrations[instance.uuid] = collections.deque()
            drvr._live_migration_monitor(
                self.ctx, instance, libvirt_guest.Guest(domain), 'x',
                mock.Mock(), mock.Mock(), False,
                objects.LibvirtLiveMigrateData(
                    migration=objects.Migration(
                        self.ctx, id=1, status='running'),
                    block_migration=False),
                Done(), [])
            told[policy] = domain.told

        threads = [threading.Thread(target=run, args=(policy,))
                   for policy in ('pause', 'post-copy')]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual({'pause': ['pause'], 'post-copy': ['post-copy']},
                         told)
        # Nobody moves here: as Nova has it.
        self.assertTrue(drvr._is_post_copy_enabled(
            drvr._get_migration_flags(False)))

    def test_what_fails_of_ours_fails_no_migration(self):
        self.started_events.side_effect = exception.InstanceActionNotFound(
            action_id=1, request_id='x', instance_uuid='y')
        post = mock.Mock()
        self.move(fast(), post=post)
        post.assert_called_once()
        with mock.patch.object(hooks.verdict, 'judge',
                               side_effect=ZeroDivisionError):
            self.move(fast(), post=post)
        self.assertEqual(2, post.call_count)
        self.assertEqual(1, self.log.output.count('no longer judged'))

    def test_pause_that_fails_is_tried_again(self):
        drvr = self.started(migration_stalled='pause')
        real, calls = Domain.suspend, []

        def suspend(domain):
            calls.append(domain)
            if len(calls) == 1:
                raise libvirt_driver.libvirt.libvirtError('no lock')
            real(domain)

        with mock.patch.object(Domain, 'suspend', suspend):
            self.assertEqual(['pause'], self.move(fast(), drvr).told)
        self.assertEqual(2, len(calls))
        self.assertEqual(2, len(self.lines('WARNING KVML705')))

    def test_flavor_that_cannot_be_loaded(self):
        """Nova may have to ask the conductor for it."""
        drvr = self.started(migration_stalled='pause')
        instance = self.make_instance()
        post = mock.Mock()
        with mock.patch.object(
                hooks.request.GuestRequest, 'read',
                side_effect=TimeoutError('no conductor')):
            told = self.move(fast(), drvr, instance=instance, post=post).told
        post.assert_called_once()
        self.assertEqual(['pause'], told)
        self.assertIn('KVML702 What flavor and image ask of a migration that '
                      'will not converge is not known: no conductor; what '
                      'counts is [kvm_ext] migration_stalled = pause.',
                      self.log.output)

    def test_nothing_is_kept_of_one_that_raises(self):
        drvr = self.started()
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, '_live_migration_monitor',
                side_effect=exception.MigrationError('x')):
            self.assertRaises(exception.MigrationError, self.move, fast(),
                              drvr)
        self.assertEqual({}, drvr._migrations._watches)
        self.assertIsNone(drvr._migrations._here.get())

    def test_diagnostics(self):
        drvr = self.started()
        instance = self.make_instance()
        found = []

        def post(*args: Any) -> None:
            found.append(drvr._migrations.diagnostics(instance))

        self.move(fast(), drvr, instance=instance, post=post)
        shown = found[0]['live_migration']
        self.assertEqual('will not converge', shown['verdict'])
        self.assertEqual('wait', shown['policy'])
        self.assertEqual(0.5, shown['downtime_allowed_seconds'])
        self.assertAlmostEqual(
            8 * MIB, shown['bandwidth_bytes_per_second'], delta=MIB / 8)
        self.assertEqual({}, drvr._migrations.diagnostics(instance))

    def test_summed_up_by_the_last_look(self):
        self.move(idle())
        line = self.lines('INFO Live migration completed')[-1]
        self.assertIn('downtime not known', line)
        self.assertIn('libvirt did not say', line)

    def test_one_that_fails_is_not_summed_up(self):
        self.move(idle(), end='FAILED')
        self.assertEqual([], self.lines('INFO Live migration completed'))
        self.assertEqual(
            ['failed'], [key[1] for key in self.counters.counts().counters[
                names.MIGRATIONS.name]])


class StatisticsTestCase(MigratingTestCase):
    """With a libvirt that says what a job took."""

    def setUp(self):
        super().setUp()
        patch = mock.patch.object(
            libvirt_driver.libvirt, 'VIR_DOMAIN_EVENT_ID_JOB_COMPLETED',
            JOB_COMPLETED, create=True)
        patch.start()
        self.addCleanup(patch.stop)
        self.connection = mock.Mock()
        self.connection.domainEventRegisterAny.return_value = 17
        patch = mock.patch.object(hooks, '_PATIENCE', 0)
        patch.start()
        self.addCleanup(patch.stop)

    def move(self, samples: Any, drvr: Any = None, **kwargs: Any) -> Domain:
        drvr = drvr or self.started()
        with mock.patch.object(drvr._host, 'get_connection',
                               return_value=self.connection):
            return super().move(samples, drvr, **kwargs)

    def test_summed_up(self):
        def ends() -> Any:
            yield from idle()
            _, event, callback, opaque = (
                self.connection.domainEventRegisterAny.call_args.args)
            self.assertEqual(JOB_COMPLETED, event)
            callback(self.connection, mock.Mock(), END, opaque)

        self.move(ends())
        counted = self.counters.counts()
        self.assertEqual(
            {('unknown', 'completed'): 1},
            counted.counters[names.MIGRATIONS.name])
        self.assertEqual(
            0.087, counted.histograms[names.DOWNTIME.name].total)
        self.assertEqual(
            ['INFO Live migration completed: downtime 0.087 s, iterations 3, '
             'sent 92.2 MiB, throughput 7.93 MiB/s, duration 13.3 s; 0.500 s '
             'of downtime were allowed.'],
            self.lines('INFO Live migration completed'))
        self.connection.domainEventDeregisterAny.assert_called_once_with(17)

    def test_word_that_comes_a_moment_after_the_end(self):
        waited = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                _, _, callback, opaque = (
                    self.connection.domainEventRegisterAny.call_args.args)
                callback(self.connection, mock.Mock(), END, opaque)

        with (mock.patch.object(hooks, '_PATIENCE', 3600),
              mock.patch.object(hooks.time, 'sleep', sleep)):
            self.move(idle())
        self.assertIn('downtime 0.087 s', self.log.output)

    def test_word_of_another_job(self):
        """The migration has waited for a backup, which ends first."""
        def ends() -> Any:
            yield from idle()
            _, _, callback, opaque = (
                self.connection.domainEventRegisterAny.call_args.args)
            for stats in ({'operation': 8, 'downtime': 0},
                          END | {'operation': 5},
                          {'operation': 7, 'downtime': 0}):
                callback(self.connection, mock.Mock(), stats, opaque)

        self.move(ends())
        self.assertIn('downtime 0.087 s', self.log.output)

    def test_word_that_does_not_come(self):
        self.move(idle())
        self.assertIn('downtime not known', self.log.output)

    def test_a_libvirt_without_events(self):
        self.connection.domainEventRegisterAny.side_effect = (
            libvirt_driver.libvirt.libvirtError('no'))
        self.move(idle())
        self.assertIn('downtime not known', self.log.output)
        self.connection.domainEventDeregisterAny.assert_not_called()

    def test_a_connection_that_is_lost(self):
        self.connection.domainEventDeregisterAny.side_effect = (
            libvirt_driver.libvirt.libvirtError('gone'))
        self.move(idle())
