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

import datetime
from typing import Any

from oslotest import base

from nova_kvm_ext.guests import pauses
from nova_kvm_ext.guests import reasons
from nova_kvm_ext.tests.unit.guests import domains

NO_SPACE, OTHER, NOT_KNOWN = (reasons.Cause.NO_SPACE, reasons.Cause.OTHER,
                              reasons.Cause.NOT_KNOWN)


class ReadTestCase(base.BaseTestCase):

    def test_runs(self):
        self.assertIsNone(pauses.read(domains.Domain(state=(1, 1))))

    def test_off(self):
        self.assertIsNone(pauses.read(domains.Domain(state=(5, 1))))

    def test_reasons_but_an_error_need_no_qemu(self):
        for number in (*range(5), *range(6, 14), 99):
            domain = domains.Domain(state=(3, number), asks=False)
            pause = pauses.read(domain)
            self.assertIsNone(pause.cause)
            self.assertEqual((), pause.disks)
            self.assertEqual(number if number < 14 else 0,
                             pause.reason.number)
            self.assertEqual(f'paused {pause.reason.words}', pause.words())

    def test_no_space(self):
        pause = pauses.read(domains.Domain(errors={'vda': 2}))
        self.assertIs(NO_SPACE, pause.cause)
        self.assertEqual('paused by an I/O error: no space on disk vda',
                         pause.words())
        self.assertEqual(
            'paused by an I/O error: no space on disk vda '
            '(/instances/disk)', pause.words(paths=True))
        self.assertIsNone(pause.since)

    def test_another_error_counts_before_no_space(self):
        for number in (1, 7):
            pause = pauses.read(domains.Domain(
                errors={'vda': 2, 'vdb': number}))
            self.assertIs(OTHER, pause.cause)
            self.assertEqual(
                'paused by an I/O error: no space on disk vda; I/O error on '
                'disk vdb', pause.words())

    def test_no_status_is_not_known(self):
        pause = pauses.read(domains.Domain(errors={}))
        self.assertIs(NOT_KNOWN, pause.cause)
        self.assertEqual(
            'paused by an I/O error: which disk is not known: QEMU keeps no '
            'status of these disks', pause.words(paths=True))

    def test_busy_qemu_is_not_asked(self):
        for control in ((1, 0, 5), (2, 0, 9000), (3, 2, 0)):
            pause = pauses.read(domains.Domain(control=control, asks=False))
            self.assertIs(NOT_KNOWN, pause.cause)
            self.assertIn('QEMU is busy', pause.unknown)

    def test_newer_libvirt_that_waits_for_qemu(self):
        # Nothing is known of the space for a disk without a place, so what
        # libvirt keeps does not make it one that may be resumed.
        pause = pauses.read(domains.Domain(
            control=(2, 0, 9000), asks=False, version=11_003_000,
            messages=["I/O error: disk='vda', index='1', path='/a', "
                      "timestamp='2026-11-27 02:22:11.123+0000', "
                      "message='No space left on device'"]))
        self.assertIs(NOT_KNOWN, pause.cause)
        self.assertEqual((), pause.disks)
        self.assertIn('QEMU is busy', pause.unknown)

    def test_libvirt_fails(self):
        pause = pauses.read(domains.Domain(errors=domains.Error(
            'Timed out during operation:\n\x1b[31m cannot acquire')))
        self.assertIs(NOT_KNOWN, pause.cause)
        self.assertEqual(
            'Timed out during operation: [31m cannot acquire',
            pause.unknown)

    def test_what_is_not_of_libvirt_is_raised(self):
        self.assertRaises(ZeroDivisionError, pauses.read,
                          domains.Domain(errors=ZeroDivisionError()))

    def test_messages_of_a_later_libvirt(self):
        message = ("I/O error: disk='vdb', index='1', path='/a'b', "
                   "timestamp='2026-11-27 02:22:11.123+0000', "
                   "message='No space left on device'")
        # They are all there is where QEMU is busy, or keeps no status.
        several: list[dict[str, Any]] = [
            {'control': (1, 0, 9)}, {'errors': {}}, {'errors': {'vdb': 2}}]
        for more in several:
            pause = pauses.read(domains.Domain(
                version=11_001_000, messages=[message, 'tainted'],
                asks=False, **more))
            self.assertIs(NO_SPACE, pause.cause, str(more))
            self.assertEqual('vdb', pause.disks[0].target)
            self.assertEqual(datetime.datetime(
                2026, 11, 27, 2, 22, 11, 123000, datetime.timezone.utc),
                pause.since)
        # One of the two may be of an earlier pause: QEMU knows which.
        other = message.replace('vdb', 'vda').replace(
            'No space left on device', 'Input/output error')
        pause = pauses.read(domains.Domain(
            version=11_001_000, messages=[message, other],
            errors={'vdb': 2}))
        self.assertEqual((NO_SPACE, ['vdb']), (
            pause.cause, [error.disk.target for error in pause.disks]))
        # An older libvirt would log an error.
        pause = pauses.read(domains.Domain(
            version=11_000_000, messages=[message], errors={'vdb': 2}))
        self.assertIsNone(pause.since)

    def test_odd_messages_tell_nothing(self):
        for message in ('', 'I/O error', "I/O error: disk='x'",
                        "E/A-Fehler: disk='vda'"):
            self.assertIs(NOT_KNOWN, pauses.read(domains.Domain(
                version=12_000_000, messages=[message], errors={})).cause)
        pause = pauses.read(domains.Domain(
            version=12_000_000, errors={}, messages=[
                "I/O error: disk='vda', index='0', path='-', "
                "timestamp='soon', message='Input/output error'"]))
        self.assertEqual((OTHER, None), (pause.cause, pause.since))


class DisksTestCase(base.BaseTestCase):

    def test_places(self):
        found = {disk.target: (disk.place.value, disk.source)
                 for disk in reasons.disks(domains.XML)}
        self.assertEqual({
            'vda': ('file', '/instances/disk'),
            'vdb': ('block', '/dev/mapper/v'),
            'vdc': ('network', 'pool/image'),
            'vdd': ('other', ''),
            'sda': ('file', '')}, found)

    def test_fixed(self):
        disk = ("<domain><devices><disk type='file'><target dev='vda'/>{}"
                "</disk></devices></domain>")
        for element, fixed in (('', False), ('<readonly/>', True),
                               ('<shareable/>', True)):
            found, = reasons.disks(disk.format(element))
            self.assertIs(fixed, found.fixed, element)

    def test_no_xml(self):
        for text in ('', 'x', '<domain', '<domain/>', '<!DOCTYPE x><a/>'):
            self.assertEqual((), reasons.disks(text))
