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

from oslotest import base

from nova_kvm_ext.guests import reasons
from nova_kvm_ext.guests import resume

MIB = resume.MIB


def paused(reason=reasons.Reason.IO_ERROR, **causes):
    return reasons.Pause(reason, tuple(
        reasons.DiskError(target, reasons.Cause[cause])
        for target, cause in causes.items()), unknown='QEMU is busy')


def space(free, total=1 << 40):
    return resume.Space(free, total)


class DecideTestCase(base.BaseTestCase):

    def check(self, expected, pause, full=False, words='', **spaces):
        verdict = resume.decide(pause, spaces)
        self.assertEqual((expected, full), (verdict.resume, verdict.full))
        self.assertIn(words, verdict.why)
        self.assertFalse(verdict.why.endswith('.'))

    def test_space(self):
        pause = paused(vda='NO_SPACE')
        self.check(True, pause, vda=space(64 * MIB))
        self.check(False, pause, full=True, vda=space(64 * MIB - 1),
                   words='63 MiB are free for disk vda, and it takes 64')
        self.check(False, pause, full=True, vda=space(0))

    def test_every_disk_counts(self):
        pause = paused(vda='NO_SPACE', vdb='NO_SPACE')
        enough, none = space(MIB << 10), space(0)
        self.check(True, pause, vda=enough, vdb=enough)
        self.check(False, pause, full=True, vda=enough, vdb=none)
        self.check(False, pause, full=True, vda=None, vdb=none)
        self.check(None, pause, vda=enough, vdb=None)

    def test_space_that_cannot_be_looked_at(self):
        self.check(None, paused(vda='NO_SPACE'), vda=None, words='disk vda')
        self.check(None, paused(vda='NO_SPACE'))

    def test_another_error(self):
        self.check(False, paused(vda='OTHER'), vda=space(MIB << 10))
        self.check(False, paused(vda='NO_SPACE', vdb='OTHER'),
                   vda=space(MIB << 10), vdb=space(MIB << 10))

    def test_not_known(self):
        self.check(False, paused(), words='QEMU is busy')
        self.check(False, paused(vda='NOT_KNOWN'), vda=space(MIB << 10))

    def test_no_other_reason(self):
        for reason in reasons.Reason:
            if reason is not reasons.Reason.IO_ERROR:
                self.check(False, paused(reason, vda='NO_SPACE'),
                           vda=space(MIB << 10), words='paused')

    def test_small_file_systems(self):
        for total, needed in ((0, 1), (10, 1), (100, 5), (1024, 51.2),
                              (1280, 64), (1 << 20, 64)):
            self.assertEqual(int(needed * MIB),
                             resume.Space(0, total * MIB).needed)


class HistoryTestCase(base.BaseTestCase):

    def test_first(self):
        history = resume.History()
        self.assertTrue(history.due(0))
        # The pause that is to be mended is none that comes again.
        self.assertIs(history, history.paused_again(5))

    def test_ever_more_seldom(self):
        history, now, waits = resume.History(), 1000.0, []
        for _ in range(8):
            history = history.after_resume(now)
            history = history.paused_again(now + 60)
            # Seen again with each update.
            self.assertIs(history, history.paused_again(now + 120))
            waits.append(history.wait)
            self.assertFalse(history.due(now + history.wait - 1))
            now += history.wait
            self.assertTrue(history.due(now))
        self.assertEqual([50, 100, 200, 400, 800, 900, 900, 900], waits)

    def test_for_months(self):
        history = resume.History(0, 10 ** 9)
        self.assertEqual(900, history.wait)

    def test_a_guest_that_ran(self):
        history = resume.History(0, 7).after_resume(1000)
        self.assertEqual(0, history.paused_again(1000 + resume.RAN).vain)
        self.assertEqual(8, history.paused_again(1000 + 119).vain)

    def test_a_cause_that_was_seen(self):
        self.assertEqual(50, resume.History(0, 7).explained().wait)
        self.assertEqual(0, resume.History(0, 0).explained().wait)
