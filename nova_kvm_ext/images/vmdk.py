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

"""Whether a VMDK is one that QEMU may be shown.

oslo.utils' inspector takes a text descriptor that is padded with NULs, as
QEMU itself writes them, for raw, and believes the first createType in any
case of letters, where QEMU believes the first in the right one. So Nova can
be brought to run qemu-img info on a descriptor, and QEMU opens the files that
it names before anyone refuses it. These are QEMU's own rules (block/vmdk.c,
vmdk_probe and vmdk_open_vmdk4), on the safe side. Pure.
"""

import struct

# BLOCK_PROBE_BUF_SIZE: QEMU guesses a format by so many bytes.
HEAD = 512

_OTHER_FILES = 'It is a VMDK that names other files.'

# What VMware and QEMU write takes 20 sectors; oslo.utils' inspector and QEMU
# parse up to a mebibyte, line by line.
_MAX_DESCRIPTOR = 128   # sectors

_SPARSE = b'KDMV'
# Then version, flags, capacity, grain size, and the descriptor's offset and
# size, all but the first two in sectors.
_SPARSE_HEADER = struct.Struct('<4sIIQQQQ')


def problem(head: bytes) -> str | None:
    """Why QEMU may not be shown a file; None for what is no VMDK, too.

    QEMU goes by a descriptor's list of files with a text file, and with a
    sparse one whose header gives no size.

    :param head: the first bytes of the file
    :returns: a sentence
    """
    if head.startswith(_SPARSE):
        if len(head) < _SPARSE_HEADER.size:
            return 'Its VMDK header is cut short.'
        _, _, _, capacity, _, _, length = _SPARSE_HEADER.unpack(
            head[:_SPARSE_HEADER.size])
        if length > _MAX_DESCRIPTOR:
            return 'Its VMDK descriptor is too long.'
        return None if capacity else _OTHER_FILES
    # Not splitlines(): to QEMU only a line feed ends a comment.
    for line in head[:HEAD].split(b'\n'):
        line = line.strip()
        if line and not line.startswith(b'#'):
            return _OTHER_FILES if line.startswith(b'version=') else None
    return None
