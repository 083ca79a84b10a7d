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

"""The only reader of /dev, of libvirt's files and of what is installed where.

Facts in, frozen data out; no decision and no remedy is made here. Paths are
taken below a root that tests can replace.
"""

import errno
import glob
import importlib.util
import os
import stat

from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.host import model


def read_device(path: str, root: str = '/') -> model.DeviceFacts:
    """Look at a character device and try to open it.

    Opening is the only honest test: a node can exist whose module cannot be
    loaded, and opening the node of a module that is not loaded loads it.
    """
    real_path = os.path.join(root, path.lstrip('/'))
    try:
        status = os.stat(real_path)
    except OSError:
        return model.DeviceFacts(path, present=False)
    if not stat.S_ISCHR(status.st_mode):
        return model.DeviceFacts(path, present=False)
    open_error = None
    try:
        os.close(os.open(real_path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        open_error = errno.errorcode.get(e.errno or 0, str(e.errno))
    return model.DeviceFacts(
        path, present=True, mode=stat.S_IMODE(status.st_mode),
        owner=status.st_uid, group=status.st_gid, open_error=open_error)


def read_install() -> model.InstallFacts:
    """Look whether Nova's loader would find ``nova.virt.kvm_ext``.

    Imports the ``nova`` and ``nova.virt`` packages, not the driver.
    """
    import nova_kvm_ext
    beside_us = os.path.join(
        os.path.dirname(os.path.dirname(nova_kvm_ext.__file__)),
        'nova', 'virt', 'kvm_ext')
    door = beside_us if os.path.isdir(beside_us) else None
    try:
        nova_virt = importlib.util.find_spec('nova.virt')
        found = importlib.util.find_spec('nova.virt.kvm_ext')
    except ImportError as e:
        return model.InstallFacts((), door, str(e))
    directories = tuple(nova_virt.submodule_search_locations or ()
                        ) if nova_virt else ()
    return model.InstallFacts(
        directories, door,
        None if found else 'nova.virt has no module kvm_ext')


def read_cpu_map(root: str = '/') -> cpu_map.CPUMap | None:
    """Read libvirt's CPU map for x86.

    :returns: None where libvirt's files are not on this machine
    """
    documents = []
    for path in glob.glob(
            os.path.join(root, 'usr/share/libvirt/cpu_map/x86_*.xml')):
        with open(path, 'rb') as f:
            documents.append(f.read())
    return cpu_map.parse(documents) if documents else None
