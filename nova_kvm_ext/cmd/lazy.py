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

"""Imports that wait until they are needed.

``--help`` and wrong command lines must be answered at once, and Nova's
options, libvirt's binding and lxml take most of a second to import. Modules of
commands import them as follows::

    with lazy.imports():
        import libvirt
        from nova_kvm_ext.host import facts

For readers, mypy and flake8 these are ordinary statements. Each name is a
stand-in that imports its module at the first access to an attribute. Only
modules can be imported this way, no classes or functions, and annotations must
not be evaluated (``from __future__ import annotations``).

importlib.util.LazyLoader is not used: before Python 3.11.9, two threads that
need the same module at the same time get a partly initialized module.
"""

import builtins
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import importlib
import sys
import types
from typing import Any


class _Module(types.ModuleType):
    """Stands for a module that may not have been imported yet."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(importlib.import_module(self.__name__), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(importlib.import_module(self.__name__), name)


class _Package:
    """What ``from package import module`` takes its names from."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> types.ModuleType:
        if name.startswith('__'):
            raise AttributeError(name)
        return _module(f'{self._name}.{name}')


def _module(name: str) -> types.ModuleType:
    return sys.modules.get(name) or _Module(name)


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Put off the imports of absolute names in the block."""
    really = builtins.__import__

    def put_off(name: str, globals: Any = None, locals: Any = None,
                fromlist: Sequence[str] | None = (), level: int = 0) -> Any:
        return _Package(name) if fromlist else _module(name)

    builtins.__import__ = put_off
    try:
        yield
    finally:
        builtins.__import__ = really
