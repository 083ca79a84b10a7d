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

"""Reads the data that this host exports to its fleet."""

import glob
import os
import re
from typing import Any

from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import export


def read(connection: Any, host: usable.Host, name: str,
         root: str = '/') -> export.Export:
    """This host's export. What cannot be read is left out.

    :param connection: libvirt.virConnect, or Nova's proxy of one
    :param host: what its guests can have
    :param name: the host's name in the fleet
    """
    return export.Export(
        name, export.of_capabilities(host.caps, host.x86_map),
        libvirt=_version(connection.getLibVersion),
        qemu=_version(connection.getVersion), kernel=os.uname().release,
        microcode=_microcode(root), nested=_nested(root))


def _version(question: Any) -> str | None:
    """libvirt's 11003000 as 11.3.0."""
    try:
        number = question()
    except Exception as e:
        # Nova's proxy raises libvirt's errors.
        if errors.libvirt_error_code(e) is None:
            raise
        return None
    if not isinstance(number, int):
        # Of libvirt's stand-ins in tests of Nova's.
        return None
    return f'{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}'


def _text(path: str, root: str) -> str:
    try:
        with open(os.path.join(root, path.lstrip('/')),
                  errors='replace') as f:
            return f.read(1 << 20)
    except OSError:
        return ''


def _microcode(root: str) -> str | None:
    """The revision that /proc/cpuinfo has for the first CPU."""
    found = re.search(r'^microcode\s*:\s*(\S+)', _text('/proc/cpuinfo', root),
                      re.MULTILINE)
    return found[1] if found else None


def _nested(root: str) -> bool | None:
    """The parameter of the loaded module, kvm_intel or kvm_amd."""
    for path in glob.glob('sys/module/kvm_*/parameters/nested',
                          root_dir=root):
        said = _text(path, root).strip()
        if said:
            return said in ('Y', '1')
    return None
