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

    def test_always_unless_the_image_says_no(self):
        for value, written, attach, understood in (
                (None, None, True, True), (True, 'yes', True, True),
                (False, 'no', False, True), (False, '0', False, True),
                (False, None, False, True), (False, 'maybe', True, False)):
            decision = channel.decide(value, written, policy='always')
            self.assertEqual((attach, understood),
                             (decision.attach, decision.understood), written)
        self.assertEqual('[kvm_ext] guest_agent = always',
                         channel.decide(None, policy='always').reason)

    def test_no_is_no_where_the_words_are_not_known(self):
        self.assertTrue(channel.decide(False, None).understood)

    def test_nonsense_is_no_and_said(self):
        for words in ('maybe', 'yes please', '2', '\x1b[31mno', 'x' * 70000):
            decision = channel.decide(False, words)
            self.assertFalse(decision.attach)
            self.assertFalse(decision.understood)
            # A tenant wrote them: they do not go into the log.
            self.assertNotIn(words, decision.reason)


class ConnectedTestCase(base.BaseTestCase):

    XML = """<domain><title>&lt;channel/&gt;</title><devices>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'
      state='connected'/></channel>
    {}</devices></domain>"""

    def connected(self, target: str) -> bool | None:
        return channel.connected(self.XML.format(
            f"<channel type='unix'>{target}</channel>"))

    def test_states(self):
        target = ("<target type='virtio' name='org.qemu.guest_agent.0' "
                  "state='{}'/>")
        self.assertIs(True, self.connected(target.format('connected')))
        self.assertIs(False, self.connected(target.format('disconnected')))

    def test_not_running(self):
        self.assertIs(False, self.connected(
            "<target type='virtio' name='org.qemu.guest_agent.0'/>"))

    def test_none(self):
        self.assertIsNone(self.connected("<target type='virtio' name='x'/>"))
        # libvirt itself takes only a virtio one for an agent's.
        self.assertIsNone(self.connected(
            "<target type='guestfwd' name='org.qemu.guest_agent.0'/>"))
