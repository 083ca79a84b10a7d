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

import dataclasses
import functools
import threading
from unittest import mock

import fixtures
from nova.compute import vm_states
from nova import exception
from nova import objects
from nova import test
from nova.virt import event as virtevent
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import conf
from nova_kvm_ext.guests import hooks
from nova_kvm_ext.guests import resumer
from nova_kvm_ext.tests.unit.guests import domains

WORDS = 'paused by an I/O error: no space on disk vda (/instances/disk)'


class Round:
    """A round whose answers the test gives."""

    def __init__(self, uri, jobs):
        self.jobs = {job.uuid: job for job in jobs}
        self.answers = []
        self.ended = True
        self.killed = self.closed = False
        self.known = set()

    def over(self):
        return self.ended or self.killed

    def outcomes(self):
        found, self.answers = self.answers, []
        return found

    def has_answered(self, uuid):
        return uuid in self.known

    def kill(self):
        self.killed = True

    def close(self):
        self.closed = True


class HooksTestCase(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        conf.register_opts(hooks.CONF)
        self.flags(resume_io_paused='auto', group='kvm_ext')
        self.domains: dict[str, domains.Domain] = {}
        self.connection = mock.Mock()
        self.connection.listAllDomains.side_effect = lambda flags: [
            domain for domain in self.domains.values()
            if domain.now[0] == 3]
        self.connection.lookupByUUIDString.side_effect = (
            self.domains.__getitem__)
        self.host = mock.Mock(_uri='qemu:///system')
        self.host.get_connection.return_value = self.connection
        self.host.get_guest.side_effect = lambda instance: mock.Mock(
            _domain=self.domains[instance.uuid])
        self.records = {}
        self.rounds = []
        self.stub_out('nova_kvm_ext.guests.resumer.Round', self._round)
        self.useFixture(fixtures.MockPatchObject(
            objects.InstanceList, 'get_by_filters', self._find))
        self.log = mock.Mock()
        for level in ('info', 'warning'):
            self.useFixture(fixtures.MockPatchObject(
                hooks.LOG, level, functools.partial(self.log, level)))
        self.now = 1000.0
        self.stub_out('time.monotonic', lambda: self.now)
        self.pauses = hooks.IOPauses(self.host)

    def _round(self, uri, jobs):
        self.assertEqual('qemu:///system', uri)
        self.rounds.append(Round(uri, jobs))
        return self.rounds[-1]

    def _find(self, context, filters, **kwargs):
        return objects.InstanceList(objects=[
            objects.Instance(**(
                {'uuid': uuid, 'host': hooks.CONF.host, 'task_state': None,
                 'vm_state': vm_states.ACTIVE} | record))
            for uuid, record in self.records.items()
            if uuid in filters['uuid']])

    def guest(self, uuid=uuids.guest, **record):
        self.domains[uuid] = domains.Domain(errors={'vda': 2}, uuid=uuid)
        self.records[uuid] = record
        return self.domains[uuid]

    def outcome(self, uuid=uuids.guest, **more):
        return dataclasses.replace(resumer.Outcome(
            uuid, paused=True, words=WORDS, cause='no space',
            disks=('vda',)), **more)

    def said(self, words):
        return [call for call in self.log.call_args_list
                if words in call.args[1] % (
                    call.args[2] if len(call.args) == 3 and
                    isinstance(call.args[2], dict) else call.args[2:])]


class StepTestCase(HooksTestCase):

    def test_nobody_is_paused(self):
        self.guest().now = (1, 1)
        self.pauses.step()
        self.assertEqual([], self.rounds)
        self.assertEqual({}, self.pauses._guests)

    def test_resumed(self):
        self.guest()
        self.pauses.step()
        self.assertEqual({uuids.guest: resumer.Job(uuids.guest, True)},
                         self.rounds[0].jobs)
        self.rounds[0].answers = [self.outcome(resumed=self.now)]
        self.domains[uuids.guest].now = (1, 5)
        self.now += 60
        self.pauses.step()
        self.assertTrue(self.rounds[0].closed)
        self.assertEqual(1, len(self.said(WORDS)))
        self.assertEqual(1, len(self.said('was resumed')))
        # It is forgotten when it has run for a while.
        self.assertEqual(1, len(self.pauses._guests))
        self.now += 120
        self.pauses.step()
        self.assertEqual({}, self.pauses._guests)

    def test_said_once(self):
        self.guest()
        for _ in range(5):
            self.pauses.step()
            self.rounds[-1].answers = [self.outcome(full=True)]
            self.now += 60
        self.assertEqual(1, len(self.said(WORDS)))
        self.assertEqual(5, len(self.rounds))

    def test_said_again_once_the_cause_is_known(self):
        unknown = self.outcome(
            words='paused by an I/O error: which disk is not known: QEMU is '
            'busy', cause='not known', may=False)
        self.guest()
        self.pauses.step()
        for _ in range(2):
            self.rounds[-1].answers = [unknown]
            self.rounds[-1].ended = True
            self.pauses.step()
        self.assertEqual(1, len(self.said('QEMU is busy')))
        self.assertEqual(1, len(self.said('found to be missing space')))
        self.rounds[-1].answers = [self.outcome()]
        self.rounds[-1].ended = True
        self.pauses.step()
        self.assertEqual(1, len(self.said(WORDS)))

    def test_ever_more_seldom(self):
        self.guest()
        resumes = 0
        for _ in range(60):
            self.pauses.step()
            if self.rounds[-1].jobs[uuids.guest].resume:
                resumes += 1
                self.rounds[-1].answers = [self.outcome(resumed=self.now)]
            self.now += 60
        # At 0, 1, 3, 7, 14, 28, 43 and 58 minutes.
        self.assertEqual(8, resumes)
        self.assertEqual(1, len(self.said('less and less often')))

    def test_a_round_that_hangs_is_the_only_one(self):
        self.guest()
        self.pauses.step()
        self.rounds[0].ended = False
        for _ in range(5):
            self.pauses.step()
        self.assertEqual(1, len(self.rounds))
        self.rounds[0].answers = [self.outcome()]
        self.pauses.step()
        self.assertEqual(1, len(self.said(WORDS)))

    def test_none_is_the_last_each_time(self):
        """A round may end before all were looked at."""
        for number in range(20):
            self.guest(getattr(uuids, f'guest{number}'))
        orders = set()
        for _ in range(5):
            self.pauses.step()
            orders.add(tuple(self.rounds[-1].jobs))
        self.assertEqual(1, len({frozenset(order) for order in orders}))
        self.assertLess(1, len({order[-1] for order in orders}))

    def test_what_nova_does_not_mean_to_run(self):
        for record in ({'vm_state': vm_states.PAUSED},
                       {'vm_state': vm_states.SUSPENDED},
                       {'vm_state': vm_states.ERROR},
                       {'vm_state': vm_states.SHELVED},
                       {'task_state': 'migrating'},
                       {'task_state': 'pausing'},
                       {'task_state': 'image_snapshot'}):
            self.guest(**record)
            self.pauses.step()
            # It is looked at, for the log.
            self.assertFalse(self.rounds[-1].jobs[uuids.guest].resume, record)
            self.rounds[-1].answers = [self.outcome()]
        for vm_state in (vm_states.RESCUED, vm_states.RESIZED):
            self.guest(vm_state=vm_state)
            self.pauses.step()
            self.assertTrue(self.rounds[-1].jobs[uuids.guest].resume)

    def test_what_is_not_novas(self):
        self.guest()
        self.records.clear()
        self.pauses.step()
        self.guest(host='another')
        self.pauses.step()
        self.assertEqual([], self.rounds)

    def test_other_reasons(self):
        for number in (0, 1, 2, 3, 4, 6, 9, 12, 13):
            self.guest().now = (3, number)
            self.pauses.step()
        self.assertEqual([], self.rounds)

    def test_never(self):
        self.flags(resume_io_paused='never', group='kvm_ext')
        self.guest()
        self.pauses.step()
        self.assertFalse(self.rounds[0].jobs[uuids.guest].resume)
        self.rounds[0].answers = [self.outcome()]
        for _ in range(3):
            self.pauses.step()
        self.assertEqual(1, len(self.said('resume_io_paused = never')))
        # Once is enough to know why.
        self.assertEqual(1, len(self.rounds))

    def test_errors_do_not_end_the_update(self):
        self.guest()
        for error in (domains.Error('lost'), OSError(28, 'no process'),
                      exception.HypervisorUnavailable(),
                      exception.DBNotAllowed(binary='nova-compute')):
            self.connection.listAllDomains.side_effect = error
            self.pauses.step()
        self.assertEqual([], self.rounds)

    def test_database_that_does_not_answer(self):
        """Of any class, as of the message bus. No guest is resumed then."""
        self.guest()
        with mock.patch.object(objects.InstanceList, 'get_by_filters',
                               side_effect=RuntimeError('no conductor')):
            self.pauses.step()
        self.assertEqual([], self.rounds)
        self.pauses.step()
        self.assertTrue(self.rounds[0].jobs[uuids.guest].resume)

    def test_libvirt_that_does_not_resume(self):
        self.guest()
        tries = 0
        for _ in range(60):
            self.pauses.step()
            if self.rounds[-1].jobs[uuids.guest].resume:
                tries += 1
                self.rounds[-1].answers = [self.outcome(
                    resumed=self.now, why='there is space again',
                    problem='Failed to get "write" lock')]
            self.now += 60
        self.assertEqual(8, tries)
        self.assertEqual(1, len(self.said('Failed to get "write" lock')))
        self.assertEqual([], self.said('was resumed'))

    def test_a_domain_that_just_ended(self):
        self.guest(uuids.gone).state = mock.Mock(
            side_effect=domains.Error('no domain', 42))
        self.guest()
        self.pauses.step()
        self.assertEqual([uuids.guest], list(self.rounds[0].jobs))

    def test_not_twice_at_a_time(self):
        self.guest()
        reached, go_on = threading.Event(), threading.Event()

        def wait(flags):
            reached.set()
            go_on.wait(60)
            return list(self.domains.values())

        self.connection.listAllDomains.side_effect = wait
        other = threading.Thread(target=self.pauses.step)
        other.start()
        reached.wait(60)
        self.pauses.step()
        self.assertEqual(1, self.connection.listAllDomains.call_count)
        go_on.set()
        other.join()
        self.assertEqual(1, len(self.rounds))

    def test_paused_by_nova_while_the_database_is_asked(self):
        self.guest()
        instance = objects.Instance(uuid=uuids.guest)
        find = self._find

        def meanwhile(*args, **kwargs):
            with self.pauses.pausing(instance):
                return find(*args, **kwargs)

        self.useFixture(fixtures.MockPatchObject(
            objects.InstanceList, 'get_by_filters', meanwhile))
        self.pauses.step()
        self.assertFalse(self.rounds[0].jobs[uuids.guest].resume)


class PausingTestCase(HooksTestCase):

    def setUp(self):
        super().setUp()
        self.instance = objects.Instance(uuid=uuids.guest)
        self.guest()
        self.pauses.step()
        self.stub_out('time.sleep', self._sleep)
        self.slept = 0.0
        self.rounds[0].ended = False

    def _sleep(self, seconds):
        self.now += seconds
        self.slept += seconds
        if self.slept > self.ends_after:
            self.rounds[0].known.add(uuids.guest)

    def test_comes_after_a_resume(self):
        self.ends_after = 1
        with self.pauses.pausing(self.instance):
            self.assertFalse(self.rounds[0].killed)
        self.assertGreater(self.slept, 1)

    def test_is_not_held_up_by_a_guest_that_hangs(self):
        self.ends_after = 10 ** 9
        with self.pauses.pausing(self.instance):
            self.assertTrue(self.rounds[0].killed)
        self.assertLess(self.slept, 6)

    def test_of_another_guest(self):
        self.ends_after = 0
        with self.pauses.pausing(objects.Instance(uuid=uuids.other)):
            pass
        self.assertEqual(0, self.slept)

    def test_counted(self):
        self.ends_after = 0
        with self.pauses.pausing(self.instance):
            with self.pauses.pausing(self.instance):
                pass
            self.rounds[0].ended = True
            self.pauses.step()
            self.assertFalse(self.rounds[-1].jobs[uuids.guest].resume)
        self.assertEqual({}, dict(self.pauses._pausing))

    def test_that_fails(self):
        self.ends_after = 0
        try:
            with self.pauses.pausing(self.instance):
                raise exception.InstanceNotFound(instance_id='x')
        except exception.InstanceNotFound:
            pass
        self.assertEqual({}, dict(self.pauses._pausing))


class EventTestCase(HooksTestCase):

    def happens(self, uuid=uuids.guest, action=1, reason='enospc',
                alias='virtio-disk0', path='/instances/disk'):
        [call] = self.connection.domainEventRegisterAny.call_args_list
        _, number, callback, opaque = call.args
        self.assertEqual(7, number)
        callback(self.connection, mock.Mock(
            UUIDString=lambda: uuid), path, alias, action, reason, opaque)

    def told(self, uuid=uuids.guest,
             transition=virtevent.EVENT_LIFECYCLE_PAUSED):
        self.pauses.noticed(virtevent.LifecycleEvent(uuid, transition))

    def setUp(self):
        super().setUp()
        self.pauses.listen()
        self.pauses.listen()
        self.guest()

    def test_said_at_once(self):
        self.happens()
        self.told()
        self.assertEqual(1, len(self.said(WORDS)))
        self.pauses.step()
        self.rounds[0].answers = [self.outcome()]
        self.pauses.step()
        self.assertEqual(1, len(self.said(WORDS)))

    def test_guest_whose_qemu_owes_an_answer(self):
        # No thread of Nova's events waits for it.
        domain = self.domains[uuids.guest]
        domain.version, domain.control = 11_003_000, (2, 0, 9000)
        self.happens()
        self.told()
        self.pauses.step()
        self.assertEqual([], self.log.call_args_list)
        # The event is kept until its disk can be told.
        domain.control = (0, 0, 0)
        self.pauses.step()
        self.rounds[0].ended = True
        self.pauses.step()
        self.assertEqual(1, len(self.said(WORDS)))

    def test_two_disks_with_different_errors(self):
        """It is not resumed, so that is not what the log says."""
        for first, second in (('enospc', ''), ('', 'enospc')):
            self.pauses._guests.clear()
            self.log.reset_mock()
            self.happens(reason=first)
            self.happens(reason=second, alias='ua-1', path='')
            self.told()
            self.assertEqual([], self.said('KVML811'))
            self.assertEqual(1, len(self.said('KVML812')))
            self.assertEqual(1, len(self.said('no space on disk vd')))
            self.assertEqual(1, len(self.said('I/O error on disk vd')))

    def test_second_disk_that_fails_later(self):
        """What was under way ends after the guest is paused."""
        self.happens()
        self.told()
        self.assertEqual(1, len(self.said('KVML811')))
        for _ in range(3):
            self.pauses.step()
            self.rounds[-1].answers = [self.outcome(
                words='paused by an I/O error: I/O error on disk vdb',
                cause='I/O error', may=False)]
        self.assertEqual(1, len(self.said('KVML811')))
        self.assertEqual(1, len(self.said('KVML812')))

    def test_what_is_not_novas(self):
        """Nothing resumes it, so nothing is promised."""
        domain = self.domains[uuids.guest]
        domain.xml = domains.XML.replace('openstack', 'another')
        self.happens()
        self.told()
        self.assertEqual([], self.log.call_args_list)
        self.assertEqual(0, len(self.pauses._events))

    def test_another_error(self):
        self.happens(reason='')
        self.told()
        self.assertEqual(1, len(self.said('I/O error on disk vda')))
        self.assertEqual(1, len(self.said('until "virsh resume"')))

    def test_no_pause(self):
        self.happens(action=0)
        self.happens(action=2)
        self.assertEqual(0, len(self.pauses._events))
        self.domains[uuids.guest].now = (3, 1)
        self.happens()
        self.told()
        self.domains[uuids.guest].now = (3, 5)
        self.told(transition=virtevent.EVENT_LIFECYCLE_RESUMED)
        self.assertEqual([], self.log.call_args_list)

    def test_without_the_disk(self):
        self.happens(alias='', path='')
        self.told()
        self.assertEqual([], self.log.call_args_list)

    def test_of_nobody(self):
        self.connection.lookupByUUIDString.side_effect = domains.Error(
            'no domain')
        self.told()
        self.host.get_connection.side_effect = (
            exception.HypervisorUnavailable())
        self.told()

    def test_bounded(self):
        for number in range(hooks._MOST_EVENTS + 10):
            self.happens(uuid=str(number))
        self.assertEqual(hooks._MOST_EVENTS, len(self.pauses._events))
        self.pauses.step()
        self.assertEqual(0, len(self.pauses._events))

    def test_a_new_connection(self):
        self.host.get_connection.return_value = mock.Mock(
            listAllDomains=mock.Mock(return_value=[]))
        self.pauses.step()
        (self.host.get_connection.return_value.domainEventRegisterAny
            .assert_called_once())

    def test_no_events(self):
        self.host.get_connection.return_value = mock.Mock(
            domainEventRegisterAny=mock.Mock(
                side_effect=domains.Error('unsupported')))
        self.pauses.listen()


class DiagnosticsTestCase(HooksTestCase):

    def found(self):
        return self.pauses.diagnostics(objects.Instance(uuid=uuids.guest))

    def test_paused(self):
        self.guest()
        self.pauses.step()
        found = self.found()['kvm_ext_pause']
        self.assertEqual(('by an I/O error', 'no space', ['vda']), (
            found['reason'], found['cause'], found['disks']))
        self.assertTrue(found['since'])
        self.assertNotIn('/instances', str(found))

    def test_by_request(self):
        self.guest().now = (3, 1)
        found = self.found()['kvm_ext_pause']
        self.assertEqual((None, [], None), (
            found['cause'], found['disks'], found['since']))

    def test_runs(self):
        self.guest().now = (1, 1)
        self.assertEqual({}, self.found())

    def test_gone(self):
        self.host.get_guest.side_effect = exception.InstanceNotFound(
            instance_id='x')
        self.assertEqual({}, self.found())
