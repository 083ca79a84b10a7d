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


"""Judges, acts on and sums up live migrations that leave this host.

Nova reads the statistics of the job twice a second while it migrates a guest,
in ``_live_migration_monitor()``. It gets a guest whose libvirt domain also
passes the statistics to this module. So nothing is asked twice, there is no
thread of ours, and the data about a migration ends with it.

The migration in Nova's API has numbers of bytes and no field for a verdict.
Nova also shows events of the action "live-migration", which have a name and a
time, and diagnostics with any content: the verdict is in both.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import contextvars
import copy
import threading
import time
from typing import Any

from nova.compute import vm_states
from nova import conf as nova_conf
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as nova_driver

from nova_kvm_ext import counters
from nova_kvm_ext import errors
from nova_kvm_ext.guests import pauses
from nova_kvm_ext import log
from nova_kvm_ext.metrics import names
from nova_kvm_ext.migration import completed
from nova_kvm_ext.migration import policy
from nova_kvm_ext.migration import verdict
from nova_kvm_ext import request

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

_SAID_AT_MOST = 20
"""Changes of verdict that are said of one migration: a guest whose load
changes all the time must not fill log and database."""

_BY_ITERATION = 3
"""The iteration by which a migration's verdict is said, known or not."""

_EVENTS = {
    verdict.Outcome.CONVERGES: 'kvm_ext_migration_will_converge',
    verdict.Outcome.STALLS: 'kvm_ext_migration_will_not_converge',
    verdict.Outcome.UNKNOWN: 'kvm_ext_migration_convergence_not_known',
}
"""Names of the events that Nova's API shows."""

_POST_COPY = 'running (post-copy)'
"""Nova's status of a migration whose guest runs at the destination."""

_TRIES = 3
"""How often it is tried to abort a migration, to pause its guest, or to switch
to post-copy, where libvirt refuses. From one time to the next it takes as long
as to the first."""

_QEMUS_DOWNTIME = 0.3
"""Seconds; what QEMU allows until it is told otherwise (downtime-limit)."""

_OPERATION_ABORTED = 78
"""VIR_ERR_OPERATION_ABORTED, which Nova's fake libvirt does not have
(libvirt-virterror.html#virErrorNumber)."""


_PATIENCE = 2.0
"""Seconds that libvirt's word of a completed job may come after Nova has seen
the guest gone: another thread has it."""

_POLL = 0.05


def _choose(instance: Any) -> policy.Choice:
    """What is done about the migration of a guest that will not converge."""
    configured = CONF.kvm_ext.migration_stalled
    try:
        wishes = request.GuestRequest.read(
            instance.flavor.extra_specs or {}, instance.system_metadata)
    except Exception as e:
        # Nova may have to load them: of any class, from a message queue and a
        # database. The migration must not fail because of that.
        return policy.by_configuration(
            configured, f'What flavor and image ask of a migration that will '
            f'not converge is not known: {errors.clean(e)}')
    return policy.decide(wishes, configured,
                         tuple(CONF.kvm_ext.migration_stalled_allowed))


class Watch:
    """One live migration, from its start to its end, in one thread.

    :param driver: the driver
    :param context: of the request that moves the guest
    :param migration: nova.objects.Migration
    :param domain: libvirt.virDomain
    :param block: whether disks are moved too
    """

    def __init__(self, driver: Any, context: Any, instance: Any,
                 migration: Any, domain: Any, block: bool) -> None:
        self._driver, self._context = driver, context
        self._instance, self._migration = instance, migration
        self._domain = domain
        self._block = block
        self._limits = verdict.Limits(
            CONF.libvirt.live_migration_downtime / 1000,
            # Nova prefers post-copy where both are permitted.
            CONF.libvirt.live_migration_permit_auto_converge and
            not CONF.libvirt.live_migration_permit_post_copy)
        self._course = verdict.Course()
        self._patience = policy.Patience()
        self._said = self._tries = 0
        self._broken = False
        self._allowed = _QEMUS_DOWNTIME
        self._over = False
        self._aborted: Exception | None = None
        self._lock = threading.Lock()
        self.choice = _choose(instance)
        self.verdict = verdict.Verdict()
        self.acted = ''
        self.statistics: Mapping[str, Any] | None = None
        self.listens = False
        self.completed = False
        self.recovered = False

    def look(self, stats: Mapping[str, Any]) -> None:
        """Nova has asked for the job's statistics. Never raises."""
        if self._broken:
            return
        try:
            self._judge(stats)
        except Exception:
            # The migration must not fail because of an error here.
            self._broken = True
            LOG.exception('KVML703 This live migration is no longer judged.',
                          instance=self._instance)

    def allow(self, milliseconds: int) -> None:
        """Nova has told QEMU another downtime."""
        self._allowed = milliseconds / 1000

    def _judge(self, stats: Mapping[str, Any]) -> None:
        sample = verdict.Sample.read(stats, self._allowed)
        if sample is None or self._migration.status == _POST_COPY:
            return
        before = self._course.last
        self._course = self._course.add(sample)
        if before is not None and before.iteration == sample.iteration:
            return
        found = verdict.judge(self._course, self._limits)
        known = found.outcome is not verdict.Outcome.UNKNOWN
        changed = found.outcome is not self.verdict.outcome
        late = (found.iteration >= _BY_ITERATION > self.verdict.iteration and
                not self._said)
        self.verdict = found
        if changed or (late and not known):
            self._say(found)
        self._patience = self._patience.after(found, sample.time)
        if self._patience.at_an_end and self._tries < _TRIES and (
                not self.acted or self._was_refused()):
            self._act()

    def _was_refused(self) -> bool:
        """Whether Nova could not do what it was told, and has logged why.

        What is judged is not in its post-copy phase.
        """
        return self.acted == policy.POST_COPY or (
            self.acted == policy.PAUSE and
            pauses.reason_of(self._domain) is None)

    def _say(self, found: verdict.Verdict) -> None:
        if self._said >= _SAID_AT_MOST:
            return
        self._said += 1
        LOG.info('Live migration: %s.', found, instance=self._instance)
        name = _EVENTS[found.outcome]
        try:
            for record in (objects.InstanceActionEvent.event_start,
                           objects.InstanceActionEvent.event_finish):
                record(self._context, self._instance.uuid, name,
                       want_result=False)
        except Exception as e:
            # Of any class, from a message queue and a database. The log has
            # it.
            LOG.debug('The API does not show the verdict: %s',
                      errors.clean(e), instance=self._instance)

    def _act(self) -> None:
        """Do what the guest's policy says."""
        wanted = self.choice.policy
        if wanted == policy.WAIT:
            return
        self._tries += 1
        self._patience = policy.Patience(self._patience.iteration)
        if wanted == policy.POST_COPY and not self._can_post_copy():
            self.acted = 'nothing: post-copy is not permitted'
            LOG.warning(
                'KVML704 The live migration will not converge, and %s asks '
                'for post-copy, which the guest or [libvirt] '
                'live_migration_permit_post_copy does not permit. Nothing is '
                'done.',
                self.choice.reason, instance=self._instance)
            return
        self.acted = wanted
        LOG.warning(
            'KVML705 The live migration will not converge: %(what)s '
            '(%(why)s).',
            {'what': {
                policy.POST_COPY: 'it is switched to post-copy',
                policy.PAUSE: 'the guest is paused until it has moved, some '
                              '{:.1f} to {:.1f} s'.format(
                                  *self.verdict.pause or (0, 0)),
                policy.ABORT: 'it is aborted'}[wanted],
             'why': self.choice.reason}, instance=self._instance)
        try:
            if wanted == policy.ABORT:
                self._driver.live_migration_abort(self._instance)
            else:
                # Nova does it as soon as it has these statistics.
                self._driver.live_migration_force_complete(self._instance)
        except Exception as e:
            # Nothing was done, so an error of the migration is none of ours.
            self.acted = ''
            if not isinstance(e, (nova_driver.libvirt.libvirtError,
                                  exception.NovaException)):
                raise
            # libvirt refuses, and Nova has logged it; or the migration has
            # just ended.
            LOG.debug('Nothing was done about the migration: %s',
                      errors.clean(e), instance=self._instance)

    def _can_post_copy(self) -> bool:
        """Whether Nova will switch to post-copy when it is told to complete.

        It pauses the guest otherwise, which is another policy.
        """
        driver = self._driver
        return bool(
            driver._is_post_copy_enabled(
                driver._get_migration_flags(self._block)) and
            not driver._get_vpmems(self._instance) and
            self._instance.vm_state != vm_states.PAUSED)

    def takes(self, error: Exception) -> bool:
        """Whether Nova is not to see that its call of libvirt was aborted.

        Called in the thread of that call, which may return before Nova's
        monitor has looked or after it.

        :param error: libvirt's VIR_ERR_OPERATION_ABORTED
        """
        with self._lock:
            if self.acted != policy.ABORT:
                return False
            if self._over:
                return self.recovered
            self._aborted = error
            return True

    def end(self) -> None:
        """Nova's monitor has returned.

        :raises libvirt.libvirtError: what was kept from Nova, when Nova has
            not rolled the migration back, as if it had not been kept
        """
        with self._lock:
            self._over = True
            if self._aborted is not None and not self.recovered:
                raise self._aborted
        if self.acted == policy.ABORT and self.recovered:
            LOG.info('Live migration aborted: the guest stays on this host '
                     '(%s).', self.choice.reason, instance=self._instance)

    def ended(self, connection: Any, domain: Any, stats: Mapping[str, Any],
              opaque: Any) -> None:
        """libvirt says that a job has completed; called in its thread."""
        if verdict.of_a_migration(stats):
            self.statistics = dict(stats)

    def sum_up(self) -> None:
        """Say in one line what the migration took, once it is completed."""
        if not self.completed:
            return
        deadline = time.monotonic() + _PATIENCE
        while (self.listens and self.statistics is None and
                time.monotonic() < deadline):
            time.sleep(_POLL)
        last = self._course.last
        if self.statistics is None and last is None:
            return
        if self.statistics is not None:
            took = completed.Completed.read(self.statistics)
        else:
            assert last is not None
            took = completed.Completed.until(last)
        LOG.info(
            'Live migration completed: %(took)s; %(allowed).3f s of downtime '
            'were allowed%(acted)s%(unknown)s.',
            {'took': took, 'allowed': self._limits.downtime,
             'acted': f'; by policy: {self.acted}' if self.acted else '',
             'unknown': '' if self.statistics is not None else
                        '; libvirt did not say, so this is of the last look'},
            instance=self._instance)

    def count(self) -> None:
        """Count the migration, which is over, for the metrics."""
        counters.COUNTERS.add(
            names.MIGRATIONS, self.verdict.outcome.name.lower(),
            'completed' if self.completed else 'failed')
        took = completed.Completed.read(self.statistics or {})
        if self.completed and took.downtime is not None:
            counters.COUNTERS.observe(names.DOWNTIME, took.downtime)

    def diagnostics(self) -> dict[str, Any]:
        """What the server's diagnostics show while it moves."""
        found = self.verdict
        return {
            'verdict': found.outcome.value, 'iteration': found.iteration,
            'memory_changed_bytes_per_second':
                None if found.changed is None else round(found.changed),
            'bandwidth_bytes_per_second': round(found.bandwidth),
            'left_bytes': round(found.left),
            'downtime_needed_seconds':
                None if found.downtime is None else round(found.downtime, 3),
            'downtime_allowed_seconds': self._limits.downtime,
            'policy': self.choice.policy, 'acted': self.acted or None,
            'said': str(found)}


class _ToldDomain:
    """A libvirt domain of which a watch is told what Nova is told."""

    def __init__(self, domain: Any, watch: Watch) -> None:
        self._real = domain
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def jobStats(self, *args: Any, **kwargs: Any) -> Any:
        stats = self._real.jobStats(*args, **kwargs)
        self._watch.look(stats)
        return stats

    def migrateSetMaxDowntime(self, downtime: int, *args: Any,
                              **kwargs: Any) -> Any:
        done = self._real.migrateSetMaxDowntime(downtime, *args, **kwargs)
        self._watch.allow(downtime)
        return done


class Migrations:
    """The live migrations from this host that are under way.

    No more are kept than Nova watches. Nova never moves one guest twice at a
    time; of two that overlap at an end the newer one is shown.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        self._watches: dict[str, Watch] = {}
        # By the identity of migrate_data, which Nova hands to all its methods
        # of one migration. None until it is watched.
        self._moves: dict[int, Watch | None] = {}
        self._lock = threading.Lock()
        # Nova's code gets its flags in the thread, or greenlet, that watches
        # the migration, from a method that is not told the instance.
        self._here: contextvars.ContextVar[Watch | None] = (
            contextvars.ContextVar('watch', default=None))

    @contextlib.contextmanager
    def moving(self, migrate_data: Any) -> Iterator[None]:
        """From before Nova calls libvirt until it has the call's result.

        :param migrate_data: nova.objects.LibvirtLiveMigrateData
        """
        with self._lock:
            self._moves[id(migrate_data)] = None
        try:
            yield
        finally:
            with self._lock:
                self._moves.pop(id(migrate_data), None)

    @contextlib.contextmanager
    def operating(self, migrate_data: Any) -> Iterator[None]:
        """While Nova calls libvirt for a migration, in a thread for that.

        Nova 32 to 34 raise what that call has raised (future.result() in
        LibvirtDriver._live_migration()), also after they have rolled the
        migration back. nova-compute then has the server in ERROR and the
        migration in error, and libvirt was asked to abort whatever job the
        guest has by then. Nova 31 leaves it at the rollback. So does this,
        for what our policy has aborted; an operator's abort ends as Nova has
        it, and so does any other error.

        :param migrate_data: nova.objects.LibvirtLiveMigrateData
        :raises libvirt.libvirtError: what was raised within, if Nova is to
            see it
        """
        try:
            yield
        except nova_driver.libvirt.libvirtError as e:
            with self._lock:
                watch = self._moves.get(id(migrate_data))
            if (e.get_error_code() != _OPERATION_ABORTED or watch is None or
                    not watch.takes(e)):
                raise

    @contextlib.contextmanager
    def watching(self, driver: Any, context: Any, instance: Any, guest: Any,
                 post_method: Callable[..., Any],
                 recover_method: Callable[..., Any], migrate_data: Any
                 ) -> Iterator[tuple[
                     Any, Callable[..., Any], Callable[..., Any]]]:
        """While Nova watches a live migration.

        :param guest: nova.virt.libvirt.guest.Guest
        :param post_method: what Nova calls when it is completed
        :param recover_method: what Nova calls to roll it back
        :returns: the three for Nova to continue with
        """
        watch = Watch(driver, context, instance, migrate_data.migration,
                      guest._domain, migrate_data.block_migration)
        if watch.choice.ignored:
            LOG.warning('KVML702 %s; what counts is %s.', watch.choice.ignored,
                        watch.choice.reason, instance=instance)

        def completes(*args: Any, **kwargs: Any) -> Any:
            watch.completed = True
            return post_method(*args, **kwargs)

        def recovers(*args: Any, **kwargs: Any) -> Any:
            done = recover_method(*args, **kwargs)
            watch.recovered = True
            return done

        told = copy.copy(guest)
        told._domain = _ToldDomain(guest._domain, watch)
        with self._lock:
            self._watches[instance.uuid] = watch
            if id(migrate_data) in self._moves:
                self._moves[id(migrate_data)] = watch
        token = self._here.set(watch)
        try:
            with self._told_of_the_end(guest, watch):
                yield told, completes, recovers
                watch.sum_up()
            watch.end()
        finally:
            watch.count()
            self._here.reset(token)
            with self._lock:
                if self._watches.get(instance.uuid) is watch:
                    del self._watches[instance.uuid]

    @contextlib.contextmanager
    def _told_of_the_end(self, guest: Any, watch: Watch) -> Iterator[None]:
        """While libvirt tells the statistics of the guest's completed job.

        They go with the guest to its destination when it is undefined here,
        but those of post-copy (libvirt-domain.html#virDomainGetJobStats).
        """
        libvirt = nova_driver.libvirt
        # Nova's fake libvirt has no such event.
        event = getattr(libvirt, 'VIR_DOMAIN_EVENT_ID_JOB_COMPLETED', None)
        if event is None:
            yield
            return
        callback = None
        try:
            connection = self._host.get_connection()
            callback = connection.domainEventRegisterAny(
                guest._domain, event, watch.ended, None)
            watch.listens = True
        except (libvirt.libvirtError, exception.NovaException) as e:
            LOG.debug('libvirt does not report what the migration took: %s',
                      errors.clean(e))
        try:
            yield
        finally:
            if callback is not None:
                # Of a connection that is lost, nothing is left to undo.
                with contextlib.suppress(libvirt.libvirtError):
                    connection.domainEventDeregisterAny(callback)

    def flags(self, flags: int) -> int:
        """Nova's flags, as the guest that moves in this thread may use them.

        To complete by force is to switch to post-copy where Nova permits
        that. A guest whose policy is to be paused is paused.
        """
        watch = self._here.get()
        if watch is not None and watch.choice.policy == policy.PAUSE:
            flags &= ~nova_driver.libvirt.VIR_MIGRATE_POSTCOPY
        return flags

    def diagnostics(self, instance: Any) -> dict[str, Any]:
        """The verdict, for the API of the form before 2.48."""
        with self._lock:
            watch = self._watches.get(instance.uuid)
        return {} if watch is None else {
            'live_migration': watch.diagnostics()}
