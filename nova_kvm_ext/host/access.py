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

"""Who may open a file, by its permission bits and its ACL.

Pure: the kernel's rule (acl(5), "ACCESS CHECK ALGORITHM") for a process
without capabilities. libvirt starts every QEMU without capabilities, also as
root.
"""

from collections.abc import Collection
import dataclasses
import struct

READ, WRITE, ENTER = 4, 2, 1

XATTR = 'system.posix_acl_access'

# linux/posix_acl_xattr.h: a version, then a tag, a permission and an id each.
_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK = 0x01, 0x02, 0x04, 0x08, 0x10


@dataclasses.dataclass(frozen=True)
class Permissions:
    """Owner, group and what they may.

    :ivar mode: permission bits
    :ivar acl: the extended attribute :data:`XATTR`, or None without one
    """

    owner: int
    group: int
    mode: int
    acl: bytes | None = None


def may(wanted: int, permissions: Permissions, uid: int,
        gids: Collection[int]) -> bool:
    """Whether a process of that user may do all that is wanted.

    :param wanted: a sum of READ, WRITE, ENTER
    :param gids: every group of the process
    """
    mode = permissions.mode
    entries = _entries(permissions.acl)
    if uid == permissions.owner:
        return _has(mode >> 6, wanted)
    if not entries:
        if permissions.group in gids:
            return _has(mode >> 3, wanted)
        return _has(mode, wanted)
    mask = next((allowed for tag, allowed, _ in entries if tag == _MASK), 7)
    for tag, allowed, who in entries:
        if tag == _USER and who == uid:
            return _has(allowed & mask, wanted)
    matching = [
        allowed for tag, allowed, who in entries
        if (tag == _GROUP_OBJ and permissions.group in gids) or
        (tag == _GROUP and who in gids)]
    if matching:
        return any(_has(allowed & mask, wanted) for allowed in matching)
    return _has(mode, wanted)


def _has(allowed: int, wanted: int) -> bool:
    return allowed & wanted == wanted


def _entries(acl: bytes | None) -> list[tuple[int, int, int]]:
    """Tag, permission and id of each entry; [] for what is no ACL."""
    if (acl is None or len(acl) < 4 or (len(acl) - 4) % 8 or
            struct.unpack_from('<I', acl)[0] != _VERSION):
        return []
    return list(struct.iter_unpack('<HHI', acl[4:]))
