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

"""What the benchmarks share: the two drivers, and what is counted."""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
import threading
from typing import Any

from nova.virt.libvirt import driver as libvirt_driver
from oslo_concurrency import processutils

from nova_kvm_ext import driver

DRIVERS: dict[str, type[libvirt_driver.LibvirtDriver]] = {
    'LibvirtDriver': libvirt_driver.LibvirtDriver,
    'KVMDriver': driver.KVMDriver}

# libvirt's client has their answers and asks nobody for them.
_LOCAL = {'ID', 'UUID', 'UUIDString', 'name'}


class CallCounter:
    """Counts the calls of libvirt's methods, each outermost one once.

    And the runs of qemu-img, which Nova starts in one way only.
    """

    def __init__(self, *classes: type) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self._inside = threading.local()
        self._on = False
        self._execute = processutils.execute
        processutils.execute = self._run
        for cls in classes:
            for name, method in list(vars(cls).items()):
                if (callable(method) and not name.startswith('_') and
                        name not in _LOCAL):
                    setattr(cls, name, self._counted(
                        f'{cls.__name__}.{name}', method))

    def _counted(self, name: str,
                 method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._on or getattr(self._inside, 'call', False):
                return method(*args, **kwargs)
            self.calls[name] += 1
            self._inside.call = True
            try:
                return method(*args, **kwargs)
            finally:
                self._inside.call = False
        return call

    def _run(self, *command: Any, **options: Any) -> Any:
        if self._on and 'qemu-img' in command:
            what = command[command.index('qemu-img') + 1]
            self.calls[f'qemu-img {what}'] += 1
        return self._execute(*command, **options)

    @contextlib.contextmanager
    def counting(self) -> Iterator[collections.Counter[str]]:
        self.calls.clear()
        self._on = True
        try:
            yield self.calls
        finally:
            self._on = False


def resident() -> float:
    """MiB that this process has in memory."""
    with open('/proc/self/statm') as f:
        pages = int(f.read().split()[1])
    return pages * os.sysconf('SC_PAGESIZE') / (1 << 20)
