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

"""Publishes the CPUs that this host's guests can have, in Nova.

The compute node's ``cpu_info`` accepts further keys. Nova shows ``cpu_info``
in the API (/os-hypervisors/detail) up to microversion 2.87, and its scheduler
has it. The document is that of :mod:`nova_kvm_ext.fleet.export`.
"""

from collections.abc import Callable
from typing import Any

from nova import exception
from oslo_log import log as logging
from oslo_serialization import jsonutils

from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import export
from nova_kvm_ext.fleet import this_host

LOG = logging.getLogger(__name__)

# nova.db.main.models.ComputeNode.cpu_info is Text: 65,535 bytes in MySQL.
# Nova's own part is 2 KB.
_MOST_BYTES = 60_000


class Published:
    """What this host publishes, worked out once."""

    def __init__(self) -> None:
        self._read: Callable[[], export.Export | None] | None = None
        self._document: dict[str, Any] | None = None

    def start(self, connect: Callable[[], Any],
              host: Callable[[], usable.Host | None], name: str) -> None:
        """The document is worked out when it is first asked for.

        :param connect: gives Nova's proxy of libvirt.virConnect
        :param host: gives what its guests can have; None where that is not
            known
        :param name: nova-compute's name of this host
        """
        def read() -> export.Export | None:
            found = host()
            return (None if found is None else
                    this_host.read(connect(), found, name))

        self._document, self._read = None, read

    def add_to(self, resources: dict[str, Any]) -> dict[str, Any]:
        """Nova's resources of this host, with the document in its place.

        :param resources: what get_available_resource returns
        """
        if self._document is None and self._read is not None:
            try:
                found = self._read()
                if found is not None:
                    self._document = export.to_dict(found)
            except exception.NovaException as e:
                # No connection to libvirt. The next round tries it again.
                LOG.debug('What guests can have is not published yet: %s',
                          errors.clean(e))
        if self._document is None:
            return resources
        try:
            info = dict(jsonutils.loads(resources['cpu_info']))
        except (LookupError, TypeError, ValueError) as e:
            # Nova's periodic work goes on, whatever it has put there.
            LOG.debug('What guests can have is not published: %s', e)
            return resources
        text = jsonutils.dumps(info | {export.MARK: self._document})
        if len(text) > _MOST_BYTES:
            LOG.debug('What guests can have is %d bytes long: too long to be '
                      'published.', len(text))
            return resources
        return resources | {'cpu_info': text}
