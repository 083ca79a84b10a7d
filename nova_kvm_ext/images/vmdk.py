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

"""Whether QEMU may open a VMDK.

oslo.utils' inspector takes a text descriptor that is padded with NULs, as
QEMU itself writes them, for raw, and uses the first createType in any case of
letters, where QEMU uses the first in the right case. So a descriptor can make
Nova run qemu-img info on it, and QEMU opens the files that it names before
anything refuses it. These are QEMU's own rules (block/vmdk.c, vmdk_probe and
vmdk_open_vmdk4), or stricter ones. Pure.
"""

import enum
import struct

# BLOCK_PROBE_BUF_SIZE: QEMU guesses a format by so many bytes.
_PROBED = 512

# Bytes of a file's beginning that are looked at: the header, and the sector
# after it, where a descriptor begins.
HEAD = 1024


class Problem(enum.Enum):
    """Why QEMU may not be shown a VMDK, as a sentence."""

    OTHER_FILES = 'It is a VMDK that names other files.'
    EXTENT = 'It is one of the extents of a split VMDK.'
    LONG = 'Its VMDK descriptor is too long.'
    CUT_SHORT = 'Its VMDK header is cut short.'


# What VMware and QEMU write takes 20 sectors; oslo.utils' inspector and QEMU
# parse up to a mebibyte, line by line.
_MAX_DESCRIPTOR = 128   # sectors

_SPARSE = b'KDMV'
# Then version, flags, capacity, grain size, and the descriptor's offset and
# size, all but the first two in sectors.
_SPARSE_HEADER = struct.Struct('<4sIIQQQQ')


def problem(head: bytes) -> Problem | None:
    """Why QEMU may not be shown a file; None for what is no VMDK, too.

    QEMU uses a descriptor's list of files with a text file, and with a
    sparse one whose header gives no size. An extent of a split VMDK has no
    descriptor; VMware gives it no place, QEMU leaves the place empty.

    :param head: the first HEAD bytes of the file
    """
    if head.startswith(_SPARSE):
        if len(head) < _SPARSE_HEADER.size:
            return Problem.CUT_SHORT
        _, _, _, capacity, _, offset, length = _SPARSE_HEADER.unpack(
            head[:_SPARSE_HEADER.size])
        if length > _MAX_DESCRIPTOR:
            return Problem.LONG
        if capacity == 0:
            return Problem.OTHER_FILES
        if length == 0 or offset == 0 or (
                offset == 1 and head[_PROBED:_PROBED + 1] == b'\0'):
            return Problem.EXTENT
        return None
    # Not splitlines(): to QEMU only a line feed ends a comment.
    for line in head[:_PROBED].split(b'\n'):
        line = line.strip()
        if line and not line.startswith(b'#'):
            return (Problem.OTHER_FILES if line.startswith(b'version=')
                    else None)
    return None
