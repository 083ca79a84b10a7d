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


import os
import struct
import tempfile

from oslotest import base

from nova_kvm_ext.host import access

RW = access.READ | access.WRITE


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack('<I', 2) + b''.join(
        struct.pack('<HHI', *entry) for entry in entries)


class MayTestCase(base.BaseTestCase):

    def may(self, mode: int, uid: int, *gids: int, acl: bytes | None = None
            ) -> bool:
        return access.may(RW, access.Permissions(0, 36, mode, acl), uid, gids)

    def test_first_that_matches_decides(self):
        self.assertTrue(self.may(0o600, 0))
        self.assertFalse(self.may(0o066, 0, 36), 'the owner has no more')
        self.assertTrue(self.may(0o060, 107, 1, 36))
        self.assertFalse(self.may(0o606, 107, 36), 'the group has no more')
        self.assertTrue(self.may(0o006, 107, 1))
        self.assertFalse(self.may(0o660, 107, 1))
        self.assertFalse(self.may(0o640, 107, 36), 'reading is not enough')

    def test_root_has_no_more_than_others(self):
        """libvirt takes the capabilities from a QEMU that runs as root."""
        self.assertFalse(access.may(
            RW, access.Permissions(5, 5, 0o660), 0, [0]))

    def test_acl(self):
        everyone = (0xffffffff,)
        base_entries = [(0x01, 6, *everyone), (0x04, 0, *everyone),
                        (0x20, 0, *everyone)]
        # udev's uaccess tag gives the user at the console an entry.
        user = acl(*base_entries, (0x02, 6, 107), (0x10, 6, *everyone))
        self.assertTrue(self.may(0o660, 107, 1, acl=user))
        self.assertFalse(self.may(0o660, 108, 1, acl=user))
        group = acl(*base_entries, (0x08, 6, 55), (0x10, 6, *everyone))
        self.assertTrue(self.may(0o660, 108, 55, acl=group))
        # The group bits are the mask then: the group itself has nothing.
        self.assertFalse(self.may(0o660, 108, 36, acl=group))
        masked = acl(*base_entries, (0x02, 6, 107), (0x10, 4, *everyone))
        self.assertFalse(self.may(0o640, 107, 1, acl=masked))

    def test_others_where_no_entry_matches(self):
        named = acl((0x02, 6, 108), (0x10, 6, 0xffffffff))
        for mode, wanted in ((0o606, True), (0o604, False), (0o660, False)):
            self.assertIs(wanted, self.may(mode, 107, 1, acl=named))

    def test_bits_are_the_kernels(self):
        self.assertEqual((os.R_OK, os.W_OK, os.X_OK),
                         (access.READ, access.WRITE, access.ENTER))

    def test_acl_without_a_mask(self):
        """Only one with named users and groups needs one (acl(5))."""
        for allowed, wanted in ((7, True), (6, True), (5, False), (4, False)):
            self.assertIs(wanted, self.may(0o600, 107, 36, acl=acl(
                (0x01, 6, 0xffffffff), (0x04, allowed, 0xffffffff))))
        for asked in range(8):
            self.assertTrue(access.may(
                asked, access.Permissions(0, 36, 0, acl(
                    (0x04, 7, 0xffffffff))), 107, [36]), str(asked))

    def test_nonsense_is_no_acl(self):
        for nonsense in (b'', b'\1', b'\3\0\0\0', b'\2\0\0\0xyz'):
            self.assertTrue(self.may(0o060, 107, 36, acl=nonsense))

    def test_as_the_kernel_has_it(self):
        """An ACL that the kernel takes is one that we read."""
        with tempfile.NamedTemporaryFile() as f:
            everyone = 0xffffffff
            text = acl((0x01, 6, everyone), (0x02, 6, 107),
                       (0x04, 0, everyone), (0x10, 6, everyone),
                       (0x20, 0, everyone))
            try:
                os.setxattr(f.name, access.XATTR, text)
            except OSError as e:
                self.skipTest(f'no ACL on this file system: {e}')
            found = os.getxattr(f.name, access.XATTR)
            self.assertTrue(self.may(0o660, 107, 1, acl=found))
