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

"""Checks that the methods of Nova that we override still exist.

Nova's libvirt driver is private API: an override of a method that has been
renamed is never called, and no error shows it. The overrides are found by
reading our own classes, not from a list, so that none is missing.

Also a program, because the import of Nova's driver is too slow for commands:
``python -m nova_kvm_ext.contract`` prints the differences, a JSON list of
lines.
"""

from collections.abc import Iterator
import inspect
import json
import sys
from typing import Any

from nova_kvm_ext import driver
from nova_kvm_ext.vhost import vif

CLASSES: tuple[type, ...] = (driver.KVMDriver, vif.KVMVIFDriver)


def overrides(ours: type) -> Iterator[tuple[str, Any]]:
    """The methods of a class that call the one of the same name above it."""
    for name, found in vars(ours).items():
        code = getattr(inspect.unwrap(found), '__code__', None) if callable(
            found) else None
        # super() needs the cell __class__, and names what it calls.
        if code and '__class__' in code.co_freevars and name in code.co_names:
            yield name, found


def differences(classes: tuple[type, ...] = CLASSES) -> list[str]:
    """What no longer fits the Nova that is installed, a line each."""
    moved = []
    for ours in classes:
        base, = ours.__bases__
        for name, override in overrides(ours):
            path = f'{base.__module__}.{base.__name__}.{name}'
            theirs = getattr(base, name, None)
            if theirs is None:
                moved.append(f'{path} is gone')
                continue
            taken = [p.name for p in
                     inspect.signature(override).parameters.values()
                     if p.kind is p.POSITIONAL_OR_KEYWORD]
            given = list(inspect.signature(theirs).parameters)
            if given[:len(taken)] != taken:
                moved.append(f'{path} takes {", ".join(given)}; we take '
                             f'{", ".join(taken)}')
    return moved


def main() -> int:
    print(json.dumps(differences()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
