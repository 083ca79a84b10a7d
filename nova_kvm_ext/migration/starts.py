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

"""No second start of a guest that left this host while nobody looked.

libvirt completes a live migration whose nova-compute was killed, and Nova (31
to 34) has the guest on its source from then on. A start or hard reboot there
would make a second one of what is left of the disk. So before a guest is
started that is not on this host, and that last left by a live migration of
which Nova saw no end, the destination's libvirt is asked.

Nothing is refused without its word that the guest runs there.
"""

from collections.abc import Callable
from typing import Any

from nova import conf as nova_conf
from nova import context as nova_context
from nova import exception
from nova import objects

from nova_kvm_ext import errors
from nova_kvm_ext import log
from nova_kvm_ext.migration import elsewhere

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

_LIVE = 'live-migration'
_ENDED = 'completed'


def check(instance: Any, host: Any, uri_of: Callable[[str], str]) -> None:
    """Refuse to start a guest that runs on another host.

    :param host: nova.virt.libvirt.host.Host
    :param uri_of: Nova's, libvirt's URI of a host
    :raises nova.exception.InstancePowerOnFailure: it runs there; tenants see
        the text, so it names no host
    """
    if _is_here(instance, host):
        return
    left = _last_left(instance)
    if left is None:
        return
    destination = left.dest_compute
    found = elsewhere.ask(_uris(left, uri_of), instance.uuid)
    if found.runs:
        LOG.error(
            'KVML721 The guest is not started, because it runs on '
            '%(destination)s: nova-compute ended while the guest was being '
            'moved there. On %(destination)s run "nova-kvm-ext guest '
            'repair-migration %(uuid)s".',
            {'destination': destination, 'uuid': instance.uuid},
            instance=instance)
        raise exception.InstancePowerOnFailure(
            reason='the instance runs on another host, where a live migration '
                   'took it. An administrator can bring it back.')
    if found.runs is None:
        LOG.warning(
            'KVML722 It is not known whether the guest runs on '
            '%(destination)s, to which it was being moved when nova-compute '
            'ended: %(why)s. It is started here.',
            {'destination': destination, 'why': found.why},
            instance=instance)


def _is_here(instance: Any, host: Any) -> bool:
    try:
        return host.get_guest(instance).is_active()
    except exception.InstanceNotFound:
        return False


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
