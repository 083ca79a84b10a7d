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

"""Reads the vCPUs of all running guests in one libvirt call.

For virDomainGetAllDomainStats libvirt asks the QEMU of each guest, and waits
without a limit for one that does not answer. While it waits, other calls of
the same connection were seen to stall (libvirt 9.0). So the call has its own
connection and a time limit, and only one call runs at a time. Nova's own way,
which needs no answer of QEMU, is used for missing guests.

A newer libvirt is not asked at all: there, a guest whose QEMU owes an answer
also delays the calls that do not need QEMU (:mod:`nova_kvm_ext.live_xml`).

After an answer that came too late, Nova's own way is used for some minutes: if
QEMUs get too little CPU time, all of them together take longer than the limit,
although none hangs.
"""

from collections.abc import Callable
import functools
import threading
import time
from typing import Any

from nova import exception
from nova.virt.libvirt import driver as nova_driver

from nova_kvm_ext import errors
from nova_kvm_ext.guests import descriptions
from nova_kvm_ext import live_xml
from nova_kvm_ext import log

LOG = log.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for the answer about all guests: some 3 ms for each on a busy
host."""

BACK_OFF = 600.0
"""Seconds without a question after one that was not answered in time."""

_HANGS = 1000
"""Milliseconds after which a QEMU that libvirt waits for is named."""


# VIR_DOMAIN_STATS_VCPU, and VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE and
# _NOWAIT: a guest with which another call is busy is not waited for. What
# stands for libvirt in Nova's own tests has no such names.
# https://libvirt.org/html/libvirt-libvirt-domain.html
_VCPU, _ACTIVE, _NOWAIT = 1 << 3, 1 << 0, 1 << 29


class _Question(threading.Thread):
    """One call, which may never return.

    :param connection: None to open one first: a libvirtd that has no place
        for another client leaves it waiting
    :param connect: opens a connection
    """

    def __init__(self, connection: Any, connect: Callable[[], Any],
                 *arguments: Any) -> None:
        # Nothing can end a call that libvirt does not answer: the process
        # does not wait for it.
        super().__init__(name='kvm-ext-vcpus', daemon=True)
        self.connection = connection
        self._connect = connect
        self._arguments = arguments
        self._ended = threading.Event()
        self.answer: list[tuple[Any, dict[str, Any]]] | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            if self.connection is None:
                self.connection = self._connect()
            self.answer = self.connection.getAllDomainStats(*self._arguments)
        except Exception as e:
            self.error = e
        finally:
            self._ended.set()

    def ended(self, seconds: float = 0) -> bool:
        return self._ended.wait(seconds)


class VCPUs:
    """How many vCPUs run, for Nova's sum.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        self._connection: Any = None
        self._open: _Question | None = None
        # Whether the operator was told that no answer comes.
        self._said = False
        # time.monotonic() of the next question.
        self._due = 0.0
        self._asking = threading.Lock()

    def view(self, driver: Any) -> Any:
        """What Nova's code that sums up vCPUs is to take for the driver."""
        return _Driver(driver, _Host(driver._host, self.by_uuid()))

    def by_uuid(self) -> dict[str, int]:
        """The vCPUs of running guests; those that are not known are left out.

        :returns: nothing where libvirt does not answer in time
        """
        if not self._asking.acquire(blocking=False):
            return {}
        try:
            return self._ask()
        finally:
            self._asking.release()

    def _ask(self) -> dict[str, int]:
        libvirt = nova_driver.libvirt
        if self._open is not None:
            if not self._open.ended():
                self._say_who()
                return {}
            self._open = None
            if self._said:
                LOG.info('libvirt has told about the vCPUs of all guests '
                         'now.')
                self._said = False
        if time.monotonic() < self._due:
            return {}
        try:
            if self._connection is None:
                # What stands for libvirt in Nova's own tests has no such call.
                if not hasattr(self._host.get_connection(),
                               'getAllDomainStats') or (
                        self._host.has_min_version(live_xml.XML_WAITS)):
                    return {}
        except (exception.NovaException, libvirt.libvirtError) as e:
            LOG.debug('libvirt cannot be asked about all guests: %s',
                      errors.clean(e))
            return {}
        question = _Question(
            self._connection,
            functools.partial(self._host._connect, self._host._uri, False),
            _VCPU, _ACTIVE | _NOWAIT)
        try:
            question.start()
        except RuntimeError as e:
            # The host has no thread left (TasksMax of the service).
            LOG.debug('No thread for the question about all guests: %s', e)
            return {}
        if not question.ended(PATIENCE):
            self._open = question
            self._due = time.monotonic() + BACK_OFF
            self._say_who()
            return {}
        if question.answer is None:
            # libvirtd may have been restarted: with another connection then.
            self._connection = None
            LOG.debug('libvirt does not tell about all guests: %s',
                      errors.clean(question.error))
            return {}
        self._connection = question.connection
        return dict(_counts(question.answer))

    def _say_who(self) -> None:
        """Name the guests whose QEMU does not answer, once.

        Nobody is named while libvirt gets one answer after the other.
        """
        if self._said:
            return
        try:
            hanging = [guest.uuid for guest in self._host.list_guests()
                       if _hangs(guest)]
        except (exception.NovaException,
                nova_driver.libvirt.libvirtError) as e:
            LOG.debug('It cannot be told which guest it is: %s',
                      errors.clean(e))
            return
        if not hanging:
            LOG.debug('libvirt takes more than %d s to tell about the vCPUs '
                      'of all guests.', PATIENCE)
            return
        self._said = True
        LOG.warning(
            'KVML510 libvirt has not told about all running guests within '
            '%(seconds)d s. It waits for QEMU of these: %(guests)s. The '
            'service continues without that answer and asks about each guest '
            'by itself.', {'seconds': PATIENCE,
                           'guests': ', '.join(hanging)})


def _hangs(guest: Any) -> bool:
    """Whether libvirt waits for the QEMU of a guest."""
    # What stands for libvirt in Nova's own tests has no such call.
    ask = getattr(guest._domain, 'controlInfo', None)
    if ask is None:
        return False
    try:
        state, _, milliseconds = ask()
    except nova_driver.libvirt.libvirtError:
        # It has ended meanwhile, or is no QEMU.
        return False
    return bool(state in descriptions.BUSY and milliseconds >= _HANGS)


def _counts(answer: Any) -> Any:
    for domain, found in answer:
        # As many as virDomainGetVcpus() would list; where that fails there
        # are none, and Nova's own way counts one.
        count = sum(key.startswith('vcpu.') and key.endswith('.state')
                    for key in found)
        if count:
            yield domain.UUIDString(), count


class _Guest:
    """A guest whose vCPUs are known."""

    def __init__(self, vcpus: int) -> None:
        self._vcpus = vcpus

    def get_vcpus_info(self) -> range:
        return range(self._vcpus)


class _Host:
    """Nova's Host, whose running guests know their vCPUs."""

    def __init__(self, host: Any, vcpus: dict[str, int]) -> None:
        self._real = host
        self._vcpus = vcpus

    def list_guests(self, *args: Any, **kwargs: Any) -> list[Any]:
        return [_Guest(self._vcpus[guest.uuid])
                if guest.uuid in self._vcpus else guest
                for guest in self._real.list_guests(*args, **kwargs)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Driver:
    """The driver as Nova's code sees it while it sums up vCPUs."""

    def __init__(self, driver: Any, host: _Host) -> None:
        self._real = driver
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
