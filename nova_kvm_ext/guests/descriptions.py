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

"""The XML of guests for Nova's periodic update, which waits for no guest.

Nova adds up the disks of all guests from their XML, for which a newer libvirt
may have to wait (:mod:`nova_kvm_ext.live_xml`). Nova then leaves the guest
out of the sum. So a QEMU whose storage hangs would delay each update.
:class:`Descriptions` keeps the XML of each guest and, if a guest is busy,
gives Nova the XML of the last update. If there is none, Nova leaves the guest
out at once. Guests whose QEMU owes libvirt an answer are named in the log.
"""

from collections.abc import Iterator
import contextlib
from typing import Any

from nova.virt.libvirt import driver as nova_driver

from nova_kvm_ext import live_xml
from nova_kvm_ext import log

LOG = log.getLogger(__name__)

BUSY = (live_xml.JOB, live_xml.OCCUPIED)
"""States of a guest whose disks are taken from the XML of the last update."""

HANGS = 5.0
"""Seconds without an answer after which a QEMU is named."""

_NOT_RUNNING = -1
"""What virDomainGetID says of a guest that does not run."""


class Descriptions:
    """The XML of the guests of a host, as the last update found it.

    There is one for each guest that the last update listed, and none where
    libvirt gives the XML at once.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        self._kept: dict[str, str] = {}
        # Of whom the operator was told.
        self._said: frozenset[str] = frozenset()
        # Nova's connection, and whether its libvirt may have to wait.
        self._waits: tuple[Any, bool] = None, False

    def __len__(self) -> int:
        return len(self._kept)

    @contextlib.contextmanager
    def view(self, driver: Any) -> Iterator[Any]:
        """What Nova's code that sums up disks is to take for the driver."""
        if not self._may_wait():
            yield driver
            return
        hanging: set[str] = set()

        def domains(*args: Any, **kwargs: Any) -> list[Any]:
            found = self._host.list_instance_domains(*args, **kwargs)
            listed = {domain.UUIDString() for domain in found}
            self._kept = {uuid: xml for uuid, xml in list(self._kept.items())
                          if uuid in listed}
            return [_Domain(domain, self._kept, hanging) for domain in found]

        yield _View(driver, _host=_View(
            driver._host, list_instance_domains=domains))
        self._say(frozenset(hanging))

    def _may_wait(self) -> bool:
        """Whether this libvirt is so new; asked once in each connection."""
        # A libvirt that is upgraded is another connection.
        connection = getattr(self._host, '_wrapped_conn', None)
        if connection is None or connection is not self._waits[0]:
            self._waits = connection, self._host.has_min_version(
                live_xml.XML_WAITS)
        return self._waits[1]

    def _say(self, hanging: frozenset[str]) -> None:
        """Name the guests whose QEMU does not answer, once for each change."""
        if hanging - self._said:
            LOG.warning(
                'KVML510 libvirt has waited for more than %(seconds)d s for '
                'an answer of QEMU of these guests: %(guests)s. The service '
                'continues without that answer.',
                {'seconds': HANGS,
                 'guests': ', '.join(sorted(hanging))})
        elif self._said and not hanging:
            LOG.info('libvirt waits for no QEMU any more.')
        self._said = hanging


class _View:
    """An object with some other attributes."""

    def __init__(self, real: Any, **attributes: Any) -> None:
        self._real = real
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Domain(_View):
    """libvirt's domain, which gives its XML without waiting."""

    def __init__(self, domain: Any, kept: dict[str, str], hanging: set[str]
                 ) -> None:
        super().__init__(domain)
        self._kept = kept
        self._hanging = hanging

    def XMLDesc(self, flags: int = 0) -> str:
        uuid = self.UUIDString()
        kept = self._kept.get(uuid) if not flags else None
        if self._is_busy():
            if kept is not None:
                return kept
            if not flags and live_xml.owes(self._real):
                # As libvirt would after 30 s.
                raise nova_driver.libvirt.libvirtError(
                    'libvirt waits for an answer of QEMU')
        xml = self._real.XMLDesc(flags)
        if not flags:
            self._kept[uuid] = xml
        return xml

    def _is_busy(self) -> bool:
        # What stands for libvirt in Nova's own tests has no such call.
        ask = getattr(self._real, 'controlInfo', None)
        if ask is None or self._real.ID() == _NOT_RUNNING:
            return False
        try:
            state, _, milliseconds = ask(0)
        except nova_driver.libvirt.libvirtError:
            # It has ended meanwhile, or is not known: as Nova does.
            return False
        if state == live_xml.OCCUPIED and milliseconds >= HANGS * 1000:
            self._hanging.add(self.UUIDString())
        return state in BUSY
