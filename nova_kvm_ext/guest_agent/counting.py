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

"""Nova's own freeze and thaw, with their numbers of file systems kept."""

from collections.abc import Callable
from typing import Any


class CountingDriver:
    """The driver as Nova's _set_quiesced() sees it: it keeps the number.

    :param driver: nova.virt.libvirt.driver.LibvirtDriver
    :param keep: takes what libvirt returns of a freeze or a thaw
    :param domain: of a guest that waits for a thaw: Nova is not to ask libvirt
        for it first, nor whether it can be frozen
    """

    def __init__(self, driver: Any, keep: Callable[[Any], Any],
                 domain: Any = None) -> None:
        self._can_quiesce = (driver._can_quiesce if domain is None else
                             lambda *args: None)
        self._host = _Host(driver._host, keep, domain)


class _Host:

    def __init__(self, host: Any, keep: Callable[[Any], Any],
                 domain: Any) -> None:
        self._real = host
        self._keep = keep
        self._domain = domain

    def get_guest(self, instance: Any) -> '_Guest':
        domain = self._domain
        if domain is None:
            domain = self._real.get_guest(instance)._domain
        return _Guest(domain, self._keep)


class _Guest:
    """Nova's Guest, for a freeze or a thaw."""

    def __init__(self, domain: Any, keep: Callable[[Any], Any]) -> None:
        self._domain = domain
        self._keep = keep

    def freeze_filesystems(self) -> None:
        self._keep(self._domain.fsFreeze())

    def thaw_filesystems(self) -> None:
        self._keep(self._domain.fsThaw())
