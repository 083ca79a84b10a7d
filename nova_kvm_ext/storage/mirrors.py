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

"""Live snapshots of a disk that is a file, which QEMU mirrors for Nova."""

from collections.abc import Callable
from typing import Any


class MirroredGuest:
    """Nova's Guest, which tells when the mirror of a disk has been stopped.

    From then on the copy does not change. Nova has the guest frozen for
    longer: until it has changed the copy's owner and defined the domain again.

    :param guest: nova.virt.libvirt.guest.Guest
    :param stopped: is called after each end of a job
    """

    def __init__(self, guest: Any, stopped: Callable[[], None]) -> None:
        self._real = guest
        self._stopped = stopped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_block_device(self, *args: Any, **kwargs: Any) -> '_BlockDevice':
        return _BlockDevice(
            self._real.get_block_device(*args, **kwargs), self._stopped)


class _BlockDevice:
    """Nova's BlockDevice."""

    def __init__(self, device: Any, stopped: Callable[[], None]) -> None:
        self._real = device
        self._stopped = stopped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def abort_job(self, *args: Any, **kwargs: Any) -> None:
        self._real.abort_job(*args, **kwargs)
        self._stopped()
