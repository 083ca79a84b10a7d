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

"""Writes the state of nova-compute for probes, always as a whole file."""

import contextlib
import json
import os
from typing import Any

from nova_kvm_ext.health import probe
from nova_kvm_ext.health import verdict


class StateFile:
    """The file of one nova-compute. Not safe to use from several threads.

    :param state_path: an existing directory
    :param host: the service's own name, ``[DEFAULT] host``
    """

    def __init__(self, state_path: str, host: str) -> None:
        self._directory = os.path.join(state_path, verdict.DIRECTORY)
        self.path = os.path.join(self._directory, verdict.file_name(host))

    def write(self, state: dict[str, Any]) -> None:
        """Put the state in the place of the one before.

        Everybody may read it who may look into the state directory: a probe
        is often another user. It is not forced to the disk, which may take
        long; after a loss of power nova-compute has to start anyway.

        :raises OSError: it cannot be written; the one before is still there
        :raises ValueError: the path is none
        """
        new = f'{self.path}.new'
        try:
            descriptor = self._open(new)
        except FileNotFoundError:
            os.mkdir(self._directory)
            os.chmod(self._directory, 0o755)
            descriptor = self._open(new)
        try:
            with open(descriptor, 'w') as f:
                # Whatever umask nova-compute has.
                os.fchmod(descriptor, 0o644)
                # Not dump(), which takes ten times as long.
                f.write(json.dumps(state))
            os.rename(new, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    @staticmethod
    def _open(path: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            # Of a writer that was killed.
            os.unlink(path)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL |
                       os.O_CLOEXEC, 0o644)


def new_state(host: str, mode: str) -> dict[str, Any]:
    """The state of this process, which starts now.

    :param host: ``[DEFAULT] host``
    :param mode: ``[kvm_ext] host_check``
    """
    return {
        'version': verdict.VERSION, 'host': host[:200],
        'written': 0.0, 'clock': 0.0, 'boot_id': probe.boot_id(),
        'phase': 'starting', 'since': probe.clock(), 'interval': None,
        'process': {'pid': os.getpid(), 'started': probe.started(os.getpid()),
                    'namespace': probe.namespace()},
        'update': {'began': None, 'finished': None, 'succeeded': None,
                   'error': ''},
        'libvirt': {'answers': None, 'since': None, 'seen': None,
                    'reason': ''},
        'placement': {'answered': None},
        'host_check': {'mode': mode, 'at': None, 'results': {}, 'fault': ''}}
