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

"""The part of the driver for guests that an I/O error paused.

Nova (31 to 34) logs "Instance is paused unexpectedly. Ignore." for them, and
its API does not unpause a server that is ACTIVE. :class:`IOPauses` logs why
they are paused and has them resumed when the cause is gone.

Nothing here waits for a guest or its QEMU: a separate process asks them
(:mod:`nova_kvm_ext.guests.resumer`). It starts in one of Nova's periodic
updates, and its answers are read in the next one.
"""

import collections
from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import random
import threading
import time
from typing import Any

from nova.compute import vm_states
from nova import conf as nova_conf
from nova import context as nova_context
from nova import exception
from nova import objects
from nova.virt import event as virtevent
from oslo_utils import timeutils

from nova_kvm_ext import errors
from nova_kvm_ext.guests import pauses
from nova_kvm_ext.guests import reasons
from nova_kvm_ext.guests import resume
from nova_kvm_ext.guests import resumer
from nova_kvm_ext import live_xml
from nova_kvm_ext import log
from nova_kvm_ext import words

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

DIAGNOSTICS_KEY = words.PAUSE_DIAGNOSTICS
"""The key of a guest's pause among its server's diagnostics."""

_LIST_PAUSED = 1 << 5
"""VIR_CONNECT_LIST_DOMAINS_PAUSED of virConnectListAllDomainsFlags. Nova's
tests put a libvirt without the name in the place of the real one."""

_EVENT_IO_ERROR_REASON = 7
"""VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON of virDomainEventID."""

_ACTION_PAUSE = 1
"""VIR_DOMAIN_EVENT_IO_ERROR_PAUSE of virDomainEventIOErrorAction."""

_NO_SPACE = 'enospc'
"""The reason of that event where there was no space
(https://libvirt.org/html/libvirt-libvirt-domain.html,
virConnectDomainEventIOErrorReasonCallback)."""

_NOVA = 'http://openstack.org/xmlns/libvirt/nova/'
"""In the XML of each guest of Nova's (nova.virt.libvirt.config.NOVA_NS)."""

_MOST_EVENTS = 1000
"""I/O errors that are kept until they are checked. A guest has one for each
request that was under way."""

_RUNS = (vm_states.ACTIVE, vm_states.RESCUED, vm_states.RESIZED)
"""States in which Nova means a guest to run."""

_PATIENCE = 5.0
"""Seconds that a pause by Nova waits for a resume that is under way."""

_POLL = 0.05


@dataclasses.dataclass
class _Guest:
    """A guest that is paused by an I/O error, or was until a moment ago.

    :ivar seen: monotonic time at which its pause was first seen
    :ivar since: of the I/O error, or of the first look at it
    :ivar said: the causes of this pause that the log has
    :ivar history: of its resumes
    :ivar told: whether the log says that resuming does not help
    :ivar refused: whether the log says that libvirt does not resume it
    """

    seen: float
    since: datetime.datetime
    said: frozenset[reasons.Cause] = frozenset()
    history: resume.History = resume.History()
    told: bool = False
    refused: bool = False

    @property
    def explained(self) -> bool:
        """Whether the log has what caused this pause."""
        return bool(self.said - {reasons.Cause.NOT_KNOWN})


@dataclasses.dataclass(frozen=True)
class _Event:
    """An I/O error that paused a guest."""

    uuid: str
    path: str
    alias: str
    cause: reasons.Cause
    when: datetime.datetime


class IOPauses:
    """The guests of a host that an I/O error paused.

    What is kept by guest is forgotten when the guest is no longer paused and
    was not resumed lately, so there is no more of it than such guests.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        self._guests: dict[str, _Guest] = {}
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self._round: resumer.Round | None = None
        # Counted: Nova's operations on one guest may overlap.
        self._pausing: collections.Counter[str] = collections.Counter()
        # Guests that Nova has paused since its database was asked.
        self._barred: set[str] = set()
        # Filled by libvirt's thread, in which no lock may be waited for.
        self._events: collections.deque[_Event] = collections.deque(
            maxlen=_MOST_EVENTS)
        self._listened: Any = None

    # What libvirt tells.

    def listen(self) -> None:
        """Be told of I/O errors on the connection that Nova has now."""
        connection = self._host.get_connection()
        if connection is self._listened:
            return
        self._listened = connection
        try:
            connection.domainEventRegisterAny(
                None, _EVENT_IO_ERROR_REASON, _io_error, self._events)
        except Exception as e:
            if errors.libvirt_error_code(e) is None:
                raise
            LOG.debug('libvirt does not tell of I/O errors as they happen: '
                      '%s', errors.clean(e))

    def noticed(self, event: Any) -> None:
        """Nova is told of an event: say at once why a guest is paused.

        Never in the way of what Nova does with the event.
        """
        if not isinstance(event, virtevent.LifecycleEvent) or (
                event.transition != virtevent.EVENT_LIFECYCLE_PAUSED):
            return
        try:
            domain = self._host.get_connection().lookupByUUIDString(
                event.uuid)
            if pauses.reason_of(domain) is reasons.Reason.IO_ERROR:
                self._say_by_event(domain, self._paused(event.uuid))
        except Exception as e:
            if errors.libvirt_error(e) is None and not isinstance(
                    e, exception.NovaException):
                raise
            # The periodic update looks at the guest again.
            LOG.debug('Why the guest is paused is not known yet: %s',
                      errors.clean(e), instance_uuid=event.uuid)

    def _paused(self, uuid: str) -> _Guest:
        """A guest is paused by an I/O error: what is known of it."""
        now = time.monotonic()
        with self._lock:
            guest = self._guests.setdefault(
                uuid, _Guest(now, timeutils.utcnow(with_timezone=True)))
            history = guest.history.paused_again(now)
            if history is not guest.history:
                # Another pause than the last.
                guest.history, guest.seen = history, now
                guest.since = timeutils.utcnow(with_timezone=True)
                guest.said = frozenset()
            return guest

    def _events_of(self, uuid: str) -> list[_Event]:
        """The I/O errors of a guest; those of others are kept."""
        found = []
        for event in tuple(self._events):
            if event.uuid == uuid:
                found.append(event)
                with contextlib.suppress(ValueError):
                    self._events.remove(event)
        return found

    def _say_by_event(self, domain: Any, guest: _Guest) -> None:
        uuid = domain.UUIDString()
        if not any(event.uuid == uuid for event in tuple(self._events)):
            return
        xml = live_xml.read(domain)
        if xml is None:
            # The events are kept for the next look.
            return
        disks = reasons.disks(xml)
        # The last one of each disk counts.
        found = {}
        for event in self._events_of(uuid):
            disk = next((disk for disk in disks
                         if event.alias and disk.alias == event.alias or
                         event.path and disk.source == event.path), None)
            if disk is not None:
                found[disk.target] = reasons.DiskError(
                    disk.target, event.cause, disk)
                guest.since = event.when
        if not found or _NOVA not in xml:
            # What is not Nova's is not resumed either.
            return
        pause = reasons.Pause(reasons.Reason.IO_ERROR, tuple(
            found[target] for target in sorted(found)), guest.since)
        self._say(uuid, pause.words(paths=True), pause.cause)

    def _say(self, uuid: str, words: str, cause: reasons.Cause | None) -> None:
        """Log why a guest is paused, once for each pause.

        Once more where another cause is found later: where it was not known
        at first, or where a second disk has an error, too.
        """
        cause = cause or reasons.Cause.NOT_KNOWN
        with self._lock:
            guest = self._guests.get(uuid)
            if guest is None or cause in guest.said or (
                    cause is reasons.Cause.NOT_KNOWN and guest.said):
                return
            guest.said |= {cause}
            again = guest.history.vain > 1
        resumes = CONF.kvm_ext.resume_io_paused == 'auto'
        if cause is reasons.Cause.NO_SPACE and resumes:
            # One that cannot be helped says so once, not with each try.
            (LOG.debug if again else LOG.warning)(
                'KVML811 The guest is %s. It is resumed when there is space '
                'again, if Nova has it as running then.', words,
                instance_uuid=uuid)
        else:
            LOG.warning(
                'KVML812 The guest is %(words)s. It stays paused until '
                '%(until)s"virsh resume"%(why)s.',
                {'words': words,
                 'until': 'the cause is found to be missing space, or until '
                 if cause is reasons.Cause.NOT_KNOWN and resumes else '',
                 'why': '' if resumes else
                 ' ([kvm_ext] resume_io_paused = never)'},
                instance_uuid=uuid)

    # Nova's periodic update.

    def step(self) -> None:
        """Hear of the last round, and start another if there is reason to.

        :raises Exception: never of libvirt or Nova: the periodic update
            continues
        """
        # Another update is at it.
        if not self._stepping.acquire(blocking=False):
            return
        try:
            self.listen()
            self._hear()
            paused = self._io_paused()
            self._forget(paused)
            if paused and self._round is None:
                self._start(paused)
        except Exception as e:
            if errors.libvirt_error(e) is None and not isinstance(
                    e, (exception.NovaException, OSError)):
                raise
            LOG.debug('Guests that are paused by an I/O error are checked '
                      'later: %s', errors.clean(e))
        finally:
            self._stepping.release()

    def _hear(self) -> None:
        """Take in what the last round has found."""
        if self._round is None:
            return
        over = self._round.over()
        for outcome in self._round.outcomes():
            self._take_in(outcome)
        if over:
            self._round.close()
            self._round = None

    def _take_in(self, outcome: resumer.Outcome) -> None:
        with self._lock:
            guest = self._guests.get(outcome.uuid)
            if guest is None or not outcome.paused:
                return
            if outcome.since is not None:
                guest.since = datetime.datetime.fromisoformat(outcome.since)
            if outcome.full:
                guest.history = guest.history.explained()
            if outcome.resumed is not None:
                guest.history = guest.history.after_resume(outcome.resumed)
        self._say(outcome.uuid, outcome.words, reasons.Cause(outcome.cause))
        if outcome.resumed is None:
            return
        if outcome.problem:
            if not guest.refused:
                guest.refused = True
                LOG.warning(
                    'KVML814 libvirt does not resume the guest, although '
                    '%(why)s: %(problem)s. It is tried less and less often, '
                    'at most every %(minutes)d minutes.',
                    {'why': outcome.why, 'problem': outcome.problem,
                     'minutes': resume.LONGEST_BACK_OFF // 60},
                    instance_uuid=outcome.uuid)
            return
        vain = guest.history.vain
        (LOG.debug if vain > 1 else LOG.info)(
            'The guest was resumed: %s.', outcome.why,
            instance_uuid=outcome.uuid)
        if vain > 1 and not guest.told:
            guest.told = True
            LOG.warning(
                'KVML813 The guest was paused again by an I/O error each time '
                'that it was resumed. It is tried less and less often, at '
                'most every %d minutes.', resume.LONGEST_BACK_OFF // 60,
                instance_uuid=outcome.uuid)

    def _io_paused(self) -> dict[str, Any]:
        """Domains by UUID. libvirt does not ask QEMU for this."""
        found = {}
        for domain in self._host.get_connection().listAllDomains(
                _LIST_PAUSED):
            try:
                if pauses.reason_of(domain) is reasons.Reason.IO_ERROR:
                    found[domain.UUIDString()] = domain
            except Exception as e:
                # One that has just ended costs itself only.
                if errors.libvirt_error_code(e) is None:
                    raise
        return found

    def _forget(self, paused: dict[str, Any]) -> None:
        """Keep what is known of guests that are paused, or lately were."""
        now = time.monotonic()
        with self._lock:
            for uuid, guest in list(self._guests.items()):
                resumed = guest.history.resumed
                if uuid not in paused and (
                        resumed is None or now - resumed > resume.RAN):
                    del self._guests[uuid]
        for event in tuple(self._events):
            if event.uuid not in paused:
                with contextlib.suppress(ValueError):
                    self._events.remove(event)

    def _start(self, paused: dict[str, Any]) -> None:
        """Have the guests checked, and those resumed that may be."""
        with self._lock:
            self._barred = set(self._pausing)
        try:
            meant_to_run = self._meant_to_run(paused)
        except Exception as e:
            # Of the database, the conductor or the message bus. Without
            # their word no guest is resumed.
            LOG.debug('What Nova means to run is not known: %s',
                      errors.clean(e))
            return
        jobs = []
        for uuid, domain in paused.items():
            if uuid not in meant_to_run:
                # Not Nova's, or Nova is at it.
                continue
            guest = self._paused(uuid)
            self._say_by_event(domain, guest)
            allowed = (CONF.kvm_ext.resume_io_paused == 'auto' and
                       meant_to_run[uuid] and
                       guest.history.due(time.monotonic()))
            if allowed or not guest.explained or guest.history.vain:
                jobs.append(resumer.Job(uuid, allowed))
        with self._lock:
            jobs = [dataclasses.replace(
                job, resume=job.resume and job.uuid not in self._barred)
                for job in jobs]
            # A round may not get through all, as where a share of files hangs:
            # none is to be the last one each time.
            random.shuffle(jobs)
            if jobs:
                self._round = resumer.Round(self._host._uri, jobs)

    def _meant_to_run(self, paused: dict[str, Any]) -> dict[str, bool]:
        """Whether Nova means these guests to run, and does nothing with them.

        libvirt's reason does not change when a guest is paused that is paused
        already. So a guest that Nova paused after the error is known by
        Nova's record alone.

        :returns: without guests that are not of Nova's, or not of this host
        """
        found = objects.InstanceList.get_by_filters(
            nova_context.get_admin_context(),
            {'uuid': list(paused), 'deleted': False}, expected_attrs=[])
        return {instance.uuid: instance.task_state is None and
                instance.vm_state in _RUNS
                for instance in found if instance.host == CONF.host}

    # What Nova does meanwhile.

    @contextlib.contextmanager
    def pausing(self, instance: Any) -> Iterator[None]:
        """While Nova pauses a guest: it is not resumed any more."""
        uuid = instance.uuid
        with self._lock:
            self._pausing[uuid] += 1
            self._barred.add(uuid)
            under_way = self._round
        try:
            if under_way is not None and under_way.jobs.get(uuid) == (
                    resumer.Job(uuid, True)):
                self._let_end(under_way, uuid)
            yield
        finally:
            with self._lock:
                self._pausing[uuid] -= 1
                if not self._pausing[uuid]:
                    del self._pausing[uuid]

    @staticmethod
    def _let_end(under_way: resumer.Round, uuid: str) -> None:
        """Wait for a resume: Nova's pause comes after it.

        One whose QEMU hangs is given up. libvirt does one thing after the
        other, so the pause comes after what was asked of it.
        """
        deadline = time.monotonic() + _PATIENCE
        while not under_way.over() and not under_way.has_answered(uuid):
            if time.monotonic() > deadline:
                under_way.kill()
                return
            time.sleep(_POLL)

    def diagnostics(self, instance: Any) -> dict[str, Any]:
        """Why a guest is paused, without paths: tenants may see it."""
        try:
            domain = self._host.get_guest(instance)._domain
            pause = (pauses.read(domain)
                     if domain.info()[0] == pauses.PAUSED else None)
        except Exception as e:
            if errors.libvirt_error(e) is None and not isinstance(
                    e, exception.NovaException):
                raise
            return {}
        if pause is None:
            return {}
        known = self._guests.get(instance.uuid)
        since = pause.since or (
            known.since if known and pause.cause is not None else None)
        return {DIAGNOSTICS_KEY: {
            'reason': pause.reason.words,
            'cause': pause.cause and pause.cause.value,
            'disks': [error.target for error in pause.disks],
            'since': since and words.when(since)}}


def _io_error(connection: Any, domain: Any, path: str, alias: str,
              action: int, reason: str, events: Any) -> None:
    """Keep an I/O error that paused a guest.

    Called by libvirt in a thread of its own, in which nothing may be logged.
    """
    if action == _ACTION_PAUSE:
        events.append(_Event(
            domain.UUIDString(), path or '', alias or '',
            reasons.Cause.NO_SPACE if reason == _NO_SPACE
            else reasons.Cause.OTHER,
            datetime.datetime.now(datetime.timezone.utc)))
