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

"""Detects and logs a guest that left this host while no nova-compute ran.

libvirt completes a live migration even if the nova-compute that started it has
ended. A new nova-compute asks its driver to abort the migrations that it finds
in progress. If the guest is no longer there, Nova (31 to 34) logs a traceback
and keeps the instance on this host, ACTIVE. Nothing is moved or repaired here:
the data that the end of a migration needs, for example volumes and ports, was
lost with the nova-compute that had it.
"""

import collections
from collections.abc import Iterator
import contextlib
import threading
from typing import Any

from nova import context as nova_context
from nova import exception
from nova import objects

from nova_kvm_ext import errors
from nova_kvm_ext import log

LOG = log.getLogger(__name__)

_UNDER_WAY = ('running', 'running (post-copy)')
"""Nova's statuses of a live migration that libvirt does."""


class Departures:
    """The guests that this nova-compute is moving to other hosts.

    Nova's driver has active_migrations, which it forgets before it aborts a
    move that failed. Moves of one guest may overlap for a moment, when the
    first one's end is still being handled: they are counted. No more are kept
    than are under way.
    """

    def __init__(self) -> None:
        self._leaving: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def leaving(self, instance: Any) -> Iterator[None]:
        """While a guest is being moved."""
        uuid = instance.uuid
        with self._lock:
            self._leaving[uuid] += 1
        try:
            yield
        finally:
            with self._lock:
                self._leaving[uuid] -= 1
                # A Counter keeps what is zero.
                self._leaving += collections.Counter()

    @contextlib.contextmanager
    def aborting(self, instance: Any) -> Iterator[None]:
        """While a move is aborted, which may not be one of ours.

        :raises nova.exception.InstanceNotFound: what was raised within; if
            the guest left unseen, the log says what to do
        """
        try:
            yield
        except exception.InstanceNotFound:
            # One that we move ourselves has just arrived.
            if instance.uuid not in self._leaving:
                LOG.error(
                    'KVML701 The guest is not on this host: nova-compute '
                    'ended while it was being moved to %(destination)s, and '
                    'libvirt will have completed that. Nova has it here '
                    'anyway. Do not delete the server. Run "nova-kvm-ext '
                    'guest repair-migration %(uuid)s" on %(destination)s, '
                    'which brings the guest back.',
                    {'destination': _destination(instance),
                     'uuid': instance.uuid},
                    instance=instance)
            raise


def _destination(instance: Any) -> str:
    for status in _UNDER_WAY:
        try:
            return objects.Migration.get_by_instance_and_status(
                nova_context.get_admin_context(), instance.uuid,
                status).dest_compute
        except Exception as e:
            # There is none, or the database, the conductor or the message bus
            # fails: what Nova raised counts, and the log line comes all the
            # same.
            LOG.debug('Where the guest was being moved is not known: %s',
                      errors.clean(e), instance=instance)
    return 'another host'
