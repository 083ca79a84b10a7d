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

"""Refuses a second start of a guest that left this host unseen.

libvirt completes a live migration whose nova-compute was killed, and Nova (31
to 34) keeps the guest on its source. A start or hard reboot there would start
a second guest from the rest of the disk. So the destination's libvirt is asked
before a guest is started that is not on this host, and whose last departure
was a live migration of which Nova saw no end.

A start is refused only if that libvirt says that the guest runs there. What is
proved is not asked again: that the guest is not there; and that it never left,
if Nova saw the migration fail and libvirt still has the guest defined here. A
host that did not answer is asked again after a minute.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import threading
import time
from typing import Any

from nova import conf as nova_conf
from nova import context as nova_context
from nova import exception
from nova import objects
from oslo_concurrency import lockutils

from nova_kvm_ext import errors
from nova_kvm_ext import log
from nova_kvm_ext.migration import elsewhere

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

_LIVE = 'live-migration'
_ENDED = 'completed'
_POST_COPY = 'running (post-copy)'

_ROLLED_BACK = ('failed', 'cancelled')
"""Statuses that Nova (31 to 34) gives a live migration when it has seen the
job of libvirt fail or be cancelled, and has rolled the migration back. A new
nova-compute gives "error" to one that it finds cut."""

_LEFT = ([3, 12], [3, 13])
"""What virDomainGetState() gives of a guest whose virtual CPUs run at its
destination: VIR_DOMAIN_PAUSED_POSTCOPY, and ..._POSTCOPY_FAILED. Part of its
memory is still here, and lost with the domain."""

_NO_DOMAIN = 42
"""VIR_ERR_NO_DOMAIN of virErrorNumber."""

_MOST_PROVED = 1000
"""Guests of which it is remembered that they are not on another host."""

_SILENT = 60.0
"""Seconds for which a host that did not answer is not asked again. Nova starts
all guests of a host one after the other when the host has booted
(resume_guests_state_on_host_boot)."""


class Starts:
    """What this nova-compute knows of guests that may run on other hosts.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        # The migration by which a guest did not leave, by the guest's UUID.
        self._proved: dict[str, int] = {}
        # Hosts that did not answer: until when they are left alone, and what
        # was found.
        self._silent: dict[str, tuple[float, elsewhere.Found]] = {}
        self._lock = threading.Lock()

    def check(self, instance: Any, uri_of: Callable[[str], str]) -> None:
        """Refuse to start a guest that runs on another host.

        :param uri_of: Nova's, libvirt's URI of a host
        :raises nova.exception.InstancePowerOnFailure: it runs there; tenants
            see the text, so it names no host
        """
        runs = self._runs_here(instance)
        if runs:
            return
        left = _last_left(instance)
        if left is None or self._proved.get(instance.uuid) == left.id:
            return
        if runs is False and left.status in _ROLLED_BACK:
            # libvirt undefines a guest that has left (Nova's flag
            # VIR_MIGRATE_UNDEFINE_SOURCE).
            return
        destination = left.dest_compute
        # Of many guests that are started at once the first one waits.
        with lockutils.lock(f'kvm-ext-starts-{destination}'):
            found = self._ask(instance, left, uri_of)
        if found.runs:
            LOG.error(
                'KVML721 The guest is not started, because it runs on '
                '%(destination)s: nova-compute ended while the guest was '
                'being moved there. On %(destination)s run "nova-kvm-ext '
                'guest repair-migration %(uuid)s".',
                {'destination': destination, 'uuid': instance.uuid},
                instance=instance)
            raise exception.InstancePowerOnFailure(
                reason='the instance runs on another host, where a live '
                       'migration took it. An administrator can bring it '
                       'back.')
        if found.runs is None:
            LOG.warning(
                'KVML722 It is not known whether the guest runs on '
                '%(destination)s, to which it was being moved when '
                'nova-compute ended: %(why)s. It is started here.',
                {'destination': destination, 'why': found.why},
                instance=instance)
        elif found.shut_off:
            LOG.warning(
                'KVML723 The guest is defined on %(destination)s too, to '
                'which it was being moved when nova-compute ended, and does '
                'not run there. It is started here, from the disks that this '
                'host has. If these are not shared, those on %(destination)s '
                'may be newer.', {'destination': destination},
                instance=instance)

    def errands(self) -> Iterator[Callable[[], None]]:
        """Name the guests that left by post-copy while no nova-compute ran.

        A nova-compute that starts (31 to 34) looks for migrations in the
        status "running" alone. It neither ends nor mentions these.
        """
        context = nova_context.get_admin_context()
        try:
            destinations = {
                migration.instance_uuid: migration.dest_compute
                for migration in sorted(
                    objects.MigrationList.get_by_filters(context, {
                        'source_compute': CONF.host, 'migration_type': _LIVE,
                        'status': _POST_COPY}), key=lambda each: each.id)}
            found = objects.InstanceList.get_by_filters(
                context, {'uuid': list(destinations), 'host': CONF.host,
                          'deleted': False},
                expected_attrs=[]) if destinations else ()
        except Exception as e:
            # Of the database, the conductor or the message bus.
            LOG.debug('Guests that left by post-copy are not known: %s',
                      errors.clean(e))
            return
        for instance in found:
            if instance.task_state is None:
                yield functools.partial(
                    self._name, instance, destinations[instance.uuid])

    def _name(self, instance: Any, destination: str) -> None:
        if self._runs_here(instance) is None:
            LOG.error(
                'KVML701 The guest runs on %(destination)s: nova-compute '
                'ended after the guest had been switched to post-copy. Nova '
                'has it on this host anyway. Do not reboot or delete the '
                'server. When libvirt has ended the migration, run '
                '"nova-kvm-ext guest repair-migration %(uuid)s" on '
                '%(destination)s, which brings the guest back.',
                {'destination': destination, 'uuid': instance.uuid},
                instance=instance)

    def _runs_here(self, instance: Any) -> bool | None:
        """Whether the guest runs here.

        :returns: None where libvirt does not have it, or what it left behind
            when it was switched to post-copy alone
        """
        try:
            guest = self._host.get_guest(instance)
            if not guest.is_active():
                return False
            # What stands for libvirt in Nova's own tests has no such call.
            state = getattr(guest._domain, 'state', None)
            return None if state is not None and state(0) in _LEFT else True
        except exception.InstanceNotFound:
            return None
        except Exception as e:
            # It has just ended. Any other error of libvirt proves nothing.
            if errors.libvirt_error_code(e) != _NO_DOMAIN:
                raise
            return None

    def _ask(self, instance: Any, left: Any, uri_of: Callable[[str], str]
             ) -> elsewhere.Found:
        """Ask the destination, unless it did not answer a moment ago."""
        destination = left.dest_compute
        until, found = self._silent.get(
            destination, (0.0, elsewhere.Found(None)))
        if time.monotonic() < until:
            return found
        found = elsewhere.ask(
            _uris(left, uri_of), instance.uuid,
            own=self._host.get_capabilities().host.uuid or '')
        with self._lock:
            self._silent.pop(destination, None)
            if found.late:
                self._silent[destination] = time.monotonic() + _SILENT, found
            elif found.runs is False and not found.shut_off:
                self._proved.pop(instance.uuid, None)
                self._proved[instance.uuid] = left.id
                while len(self._proved) > _MOST_PROVED:
                    del self._proved[next(iter(self._proved))]
        return found


def _last_left(instance: Any) -> Any:
    """The live migration by which the guest may have left this host.

    :returns: nova.objects.Migration, or None
    """
    try:
        found = objects.MigrationList.get_by_filters(
            nova_context.get_admin_context(),
            {'instance_uuid': instance.uuid, 'migration_type': _LIVE})
    except Exception as e:
        # Of the database, the conductor or the message bus. What is not known
        # keeps no guest from starting.
        LOG.debug('The migrations of the guest are not known: %s',
                  errors.clean(e), instance=instance)
        return None
    newest = max(found, key=lambda migration: migration.id, default=None)
    if (newest is None or newest.status == _ENDED or
            newest.source_compute != CONF.host or
            newest.dest_compute in (None, CONF.host)):
        return None
    return newest


def _uris(left: Any, uri_of: Callable[[str], str]) -> list[str]:
    """How the destination's libvirt may be reached, without repetition."""
    names = [left.dest_compute, left.dest_host]
    try:
        names.append(
            str(objects.ComputeNode.get_first_node_by_host_for_old_compat(
                nova_context.get_admin_context(), left.dest_compute).host_ip))
    except Exception as e:
        # It was removed from the cloud, for one.
        LOG.debug('The address of %s is not known: %s', left.dest_compute,
                  errors.clean(e))
    found: list[str] = []
    for name in filter(None, names):
        try:
            uri = uri_of(name)
        except (exception.NovaException, TypeError, ValueError):
            # [libvirt] live_migration_uri has no place for a name.
            continue
        if uri not in found:
            found.append(uri)
    return found
