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

"""The part of the driver for the state file of nova-compute."""

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import threading
import time
from typing import Any

from nova import conf as nova_conf
from nova import exception

from nova_kvm_ext import errors
from nova_kvm_ext.health import probe
from nova_kvm_ext.health import record
from nova_kvm_ext.host.checks import verdict as checks
from nova_kvm_ext import log

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

_DEFAULT_INTERVAL = 60
"""Seconds between periodic tasks whose interval is 0 (oslo.service
periodic_task, DEFAULT_INTERVAL)."""

_LONGEST = 300


class Health:
    """What probes are told of this service. Safe to use from many threads.

    Nothing is written before :meth:`starting`. A file that cannot be written
    never fails what the driver does: it is said once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: record.StateFile | None = None
        self._state: dict[str, Any] = {}
        self._unwritten = False

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Around the start of the driver."""
        with self._lock:
            self._file = record.StateFile(CONF.state_path, CONF.host)
            self._state = record.new_state(CONF.host, CONF.kvm_ext.host_check)
            self._write()
        yield
        with self._lock:
            self._state['libvirt'] |= _answers(self._state['libvirt'])
            self._state |= {'phase': 'running', 'since': probe.clock()}
            self._write()

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Around Nova's periodic look at this host."""
        self._tell('update', began=probe.clock())
        try:
            yield
        except Exception as e:
            # Any other error of libvirt is an answer, too.
            if isinstance(e, exception.HypervisorUnavailable):
                self.connection(False, e)
            self._tell('update', finished=probe.clock(),
                       error=errors.clean(e, _LONGEST))
            raise
        now = probe.clock()
        self._tell('libvirt', **_answers(self._state.get('libvirt', {})))
        self._tell('update', finished=now, succeeded=now, error='')

    def connection(self, enabled: bool, reason: object) -> None:
        """The connection to libvirt is there, or is lost.

        :param reason: why it is lost, for people
        """
        was = self._state.get('libvirt', {})
        if enabled:
            self._tell('libvirt', **_answers(was))
        elif was.get('answers') is not False:
            self._tell('libvirt', answers=False, since=probe.clock(),
                       reason=errors.clean(reason, _LONGEST))

    def placement_answered(self) -> None:
        """Nova has what Placement knows of this host."""
        self._tell('placement', answered=probe.clock())

    def checked(self, results: Iterable[checks.CheckResult], fault: str
                ) -> None:
        """The host check has run.

        :param fault: what prevents guests from running, a sentence, or ''
        """
        self._tell('host_check', at=probe.clock(),
                   fault=errors.clean(fault, _LONGEST),
                   results={result.code: result.result for result in results})

    def _tell(self, part: str, **facts: Any) -> None:
        """Change some facts, and write all."""
        with self._lock:
            if self._file is None:
                return
            (self._state[part] if part else self._state).update(facts)
            self._write()

    def _write(self) -> None:
        assert self._file is not None
        interval = CONF.update_resources_interval
        self._state |= {
            'interval': None if interval < 0 else
            interval or _DEFAULT_INTERVAL,
            'written': time.time(), 'clock': probe.clock()}
        try:
            self._file.write(self._state)
        except (OSError, ValueError) as e:
            # A path with a NUL in it is a ValueError.
            if not self._unwritten:
                LOG.warning('KVML901 The state of this service cannot be '
                            'written for nova-kvm-ext host health: %s.',
                            errors.clean(e))
            self._unwritten = True
        else:
            if self._unwritten:
                LOG.info('The state of this service is written again.')
            self._unwritten = False


def _answers(was: dict[str, Any]) -> dict[str, Any]:
    """libvirt answers; since when, if it did before."""
    now = probe.clock()
    return {'answers': True, 'seen': now, 'reason': '',
            'since': was.get('since') if was.get('answers') else now}
