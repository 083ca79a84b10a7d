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

"""Puts KVMDriver where Nova's tests look for LibvirtDriver, and counts calls.

Import this after ``nova.tests.unit`` or ``nova.tests.functional``, which
patch the standard library for eventlet, and before any test module of Nova's.
As a program (``python -m nova_kvm_ext.tests.conformance.swap DIRECTORY``) it
adds up what all test processes have counted and fails if one of our overrides
was never called.
"""

import atexit
from collections.abc import Callable
import functools
import importlib
import inspect
import json
import os
import pathlib
import sys
import types
from typing import Any

CALLS = 'NOVA_KVM_EXT_CONFORMANCE_CALLS'
"""Environment variable: the directory for the counts of each process."""

_calls: dict[str, int] = {}


def _overrides(ours: type, novas: type) -> dict[str, Any]:
    """What a class of ours changes of Nova's, by name."""
    return {name: value for name, value in vars(ours).items()
            if inspect.isroutine(value) and hasattr(novas, name)}


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """An override that notes that it was called."""
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _calls[name] = _calls.get(name, 0) + 1
        return function(*args, **kwargs)

    # Nova's tests compare signatures without following wrappers.
    call.__signature__ = inspect.signature(function)  # type: ignore
    return call


def _shell(ours: type, novas: type) -> type:
    """A class that Nova's tests cannot tell from Nova's own.

    It has the original's name, counts calls of our overrides, and declares
    every inherited static and class method again: fixtures.MonkeyPatch on an
    inherited one restores it as a plain function of the class, which breaks
    the tests that follow.
    """
    body: dict[str, Any] = {
        '__module__': novas.__module__, '__doc__': novas.__doc__}
    for name in dir(novas):
        found = inspect.getattr_static(ours, name)
        if isinstance(found, staticmethod | classmethod):
            body[name] = found
    overrides = _overrides(ours, novas)
    for name, function in overrides.items():
        _calls[f'{ours.__name__}.{name}'] = 0
        if inspect.isfunction(function):
            body[name] = _counted(f'{ours.__name__}.{name}', function)
    return type(novas.__name__, (ours,), body)


def _keep_own_name(module: types.ModuleType, novas: type) -> None:
    """Let the original's methods find the original under another name.

    Nova 31 and 32 say ``super(LibvirtDriver, self).__init__``. Through the
    swapped global that would call ours again, for ever.
    """
    name, kept = novas.__name__, f'_novas_{novas.__name__}'
    setattr(module, kept, novas)
    for function in vars(novas).values():
        code = getattr(function, '__code__', None)
        if code is not None and name in code.co_names:
            function.__code__ = code.replace(co_names=tuple(
                kept if n == name else n for n in code.co_names))


def write_calls() -> None:
    """Write what this process has counted, if counts are asked for."""
    if CALLS in os.environ:
        path = pathlib.Path(os.environ[CALLS], f'{os.getpid()}.json')
        path.write_text(json.dumps(_calls))


def swap() -> None:
    """Put our classes in place, for the life of this process."""
    from nova.virt import libvirt
    from nova.virt.libvirt import driver
    from nova.virt.libvirt import vif

    from nova_kvm_ext import driver as our_driver
    from nova_kvm_ext.host import facts
    from nova_kvm_ext.host import model
    from nova_kvm_ext.tests import policy_file
    from nova_kvm_ext.vhost import vif as our_vif

    policy_file.parse_once()
    # Nova's tests let nobody import libvirt while they run.
    importlib.import_module('libvirt_qemu')
    # Nova's tests expect what they set up, not what this machine has.
    facts.read_device = lambda path, root='/': model.DeviceFacts(
        path, present=False)

    _keep_own_name(driver, driver.LibvirtDriver)
    driver.LibvirtDriver = _shell(our_driver.KVMDriver, driver.LibvirtDriver)
    libvirt.LibvirtDriver = driver.LibvirtDriver
    vif_driver = _shell(our_vif.KVMVIFDriver, vif.LibvirtGenericVIFDriver)
    vif.LibvirtGenericVIFDriver = vif_driver
    # Our driver makes one of these by itself.
    setattr(our_vif, our_vif.KVMVIFDriver.__name__, vif_driver)
    atexit.register(write_calls)


NOT_CALLED = {
    'KVMDriver._handle_conn_event':
        'Nova\'s fixture of libvirt has no connection events',
    'KVMDriver.manage_image_cache':
        'Nova tests the image cache itself, and never by the driver',
}
"""Overrides that no test of Nova comes to, and why."""


def main(directory: str) -> int:
    """Add up the counts, print them, and say which override was not called.

    :returns: 1 if one was never called that is not known for it, else 0
    """
    total: dict[str, int] = {}
    for path in pathlib.Path(directory).glob('*.json'):
        for name, calls in json.loads(path.read_text()).items():
            total[name] = total.get(name, 0) + calls
    for name in sorted(total):
        print(f'{total[name]:8}  {name}')
    unused = [name for name in total
              if not total[name] and name not in NOT_CALLED]
    if unused or not total:
        print(f'never called by any test of Nova: '
              f'{", ".join(sorted(unused)) or "anything"}', file=sys.stderr)
    return int(bool(unused) or not total)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
