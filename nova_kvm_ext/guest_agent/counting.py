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

"""Nova's own freeze and thaw, of which the numbers are kept."""

from collections.abc import Callable
from typing import Any


class CountingDriver:
    """The driver as Nova's _set_quiesced() sees it: it keeps the number.

    :param driver: nova.virt.libvirt.driver.LibvirtDriver
    :param keep: takes what libvirt returns of a freeze or a thaw
    """

    def __init__(self, driver: Any, keep: Callable[[Any], Any]) -> None:
        self._can_quiesce = driver._can_quiesce
        self._host = _Host(driver._host, keep)


class _Host:

    def __init__(self, host: Any, keep: Callable[[Any], Any]) -> None:
        self._real = host
        self._keep = keep

    def get_guest(self, instance: Any) -> '_Guest':
        return _Guest(self._real.get_guest(instance), self._keep)


class _Guest:
    """Nova's Guest, for a freeze or a thaw."""

    def __init__(self, guest: Any, keep: Callable[[Any], Any]) -> None:
        self._domain = guest._domain
        self._keep = keep

    def freeze_filesystems(self) -> None:
        self._keep(self._domain.fsFreeze())

    def thaw_filesystems(self) -> None:
        self._keep(self._domain.fsThaw())
