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

"""Gives the answer of ``qemu-img info`` about a disk, without a process.

Tenants' QEMU writes the headers of running guests' disks. So this module makes
one limited read of a regular file, and follows neither a symbolic link nor
anything that the header names.
"""

import json
import os
import stat
from typing import Any

from nova_kvm_ext.images import qcow2

# O_NONBLOCK: a FIFO that lies there must not have the service wait.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def info(path: str, disk_format: str | None = None) -> str | None:
    """What qemu-img would say, as JSON, without snapshots and bitmaps.

    :param path: as it would be given to qemu-img
    :param disk_format: what qemu-img would be told that this is; None has it
        guess
    :returns: None where the header does not settle it, or cannot be read
    """
    # By a name that does not begin with a slash QEMU may mean no file.
    if disk_format not in (None, 'qcow2') or not os.path.isabs(path):
        return None
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        head = os.pread(descriptor, qcow2.HEAD, 0)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    header = qcow2.parse(head, status.st_size)
    if header is None:
        return None
    # As QEMU counts (raw_co_get_allocated_file_size in block/file-posix.c).
    return json.dumps(_document(path, header, status.st_blocks * 512))


def _document(path: str, header: qcow2.Header, actual_size: int
              ) -> dict[str, Any]:
    specific: dict[str, Any] = {
        'compat': '0.10' if header.version == 2 else '1.1',
        'compression-type': header.compression,
        'refcount-bits': header.refcount_bits}
    if header.version > 2:
        specific |= {'lazy-refcounts': header.lazy_refcounts,
                     'corrupt': header.corrupt,
                     'extended-l2': header.extended_l2}
    document: dict[str, Any] = {
        'virtual-size': header.virtual_size, 'filename': path,
        'cluster-size': header.cluster_size, 'format': 'qcow2',
        'actual-size': actual_size, 'dirty-flag': header.dirty,
        'format-specific': {'type': 'qcow2', 'data': specific}}
    if header.backing_file is not None:
        document |= {
            'backing-filename': header.backing_file,
            'full-backing-filename': os.path.join(
                os.path.dirname(path), header.backing_file)}
        if header.backing_format is not None:
            document['backing-filename-format'] = header.backing_format
    return document
