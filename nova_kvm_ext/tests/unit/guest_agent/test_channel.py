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

from nova_kvm_ext.guest_agent import channel


class ChannelTestCase(base.BaseTestCase):

    def test_yes(self):
        self.assertTrue(channel.decide(True, 'yes').attach)

    def test_no(self):
        decision = channel.decide(False, 'no')
        self.assertFalse(decision.attach)
        self.assertTrue(decision.understood)

    def test_absent(self):
        decision = channel.decide(None)
        self.assertFalse(decision.attach)
        self.assertTrue(decision.understood)

    def test_no_is_no_where_the_words_are_not_known(self):
        self.assertTrue(channel.decide(False, None).understood)

    def test_nonsense_is_no_and_said(self):
        for words in ('maybe', 'yes please', '2', '\x1b[31mno', 'x' * 70000):
            decision = channel.decide(False, words)
            self.assertFalse(decision.attach)
            self.assertFalse(decision.understood)
            # A tenant wrote them: they do not go into the log.
            self.assertNotIn(words, decision.reason)
