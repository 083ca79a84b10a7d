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

"""PCI devices of this host, for Nova's list of them in each periodic update.

For each device Nova 31 to 33 ask libvirt three times for its capabilities,
with two calls each time, and twice for its XML. The answers do not change
within one list, so each device is asked once. Nova 34 makes the list once.
"""

from typing import Any


def kept_by_nova(driver: type) -> bool:
    """Whether Nova keeps the list itself.

    :param driver: nova.virt.libvirt.driver.LibvirtDriver
    """
    return hasattr(getattr(driver, '_get_pci_passthrough_devices'),
                   'cache_clear')


class _Device:
    """A virNodeDevice whose answers are kept."""

    def __init__(self, device: Any) -> None:
        self._device = device
        # By the name of the question and what it takes.
        self._answers: dict[tuple[Any, ...], Any] = {}

    def _once(self, name: str, *args: Any) -> Any:
        # An error is no answer: Nova has its own way with a device that is
        # gone.
        if (name, *args) not in self._answers:
            self._answers[name, *args] = getattr(self._device, name)(*args)
        return self._answers[name, *args]

    def listCaps(self) -> list[str]:
        return list(self._once('listCaps'))

    def XMLDesc(self, flags: int = 0) -> str:
        return str(self._once('XMLDesc', flags))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


class _Host:
    """Nova's Host, whose devices do so."""

    def __init__(self, host: Any) -> None:
        self._real = host

    def list_all_devices(self, *args: Any, **kwargs: Any) -> list[_Device]:
        return [_Device(device) for device in
                self._real.list_all_devices(*args, **kwargs)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class View:
    """The driver as Nova's code sees it while it lists PCI devices.

    :param driver: nova.virt.libvirt.driver.LibvirtDriver
    """

    def __init__(self, driver: Any) -> None:
        self._host = _Host(driver._host)
