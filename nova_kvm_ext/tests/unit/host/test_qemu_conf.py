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


import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext.host import qemu_conf


TEXT = """\
# a comment
user = "qemu"
  group='+36'  # the group

max=5
low = -1
list = [ "a", # one
  "b", 3 ]
empty = []
long = \"\"\"a
 b\"\"\"
last = 'no newline'"""


class ParseTestCase(base.BaseTestCase):

    def test_values(self):
        self.assertEqual(
            {'user': 'qemu', 'group': '+36', 'max': '5', 'low': '-1',
             'long': 'a\n b', 'last': 'no newline'}, qemu_conf.parse(TEXT))

    def test_nothing(self):
        for text in ('', '\n\n', '# user = "x"', '#user = "x"\n#\n'):
            self.assertEqual({}, qemu_conf.parse(text))

    def test_the_last_one_counts(self):
        self.assertEqual({'user': 'b'},
                         qemu_conf.parse('user="a"\nuser="b"\n'))

    def test_what_libvirt_cannot_read(self):
        for text in ('user = qemu', '\nuser "qemu"', 'user = "qemu',
                     'user = "a" group = "b"', 'list = [ "a"', '= 5'):
            error = self.assertRaises(ValueError, qemu_conf.parse, text)
            self.assertIn('line 2' if text[0] == '\n' else 'line 1',
                          str(error))

    @hypothesis.settings(max_examples=300, deadline=None, database=None)
    @hypothesis.given(strategies.text('ab =[]"\'#\n+0,'))
    def test_anything_ends(self, text):
        try:
            qemu_conf.parse(text)
        except ValueError as e:
            self.assertIn('line ', str(e))


class NumberTestCase(base.BaseTestCase):

    def test_numbers(self):
        self.assertEqual(36, qemu_conf.number('+36'))
        self.assertEqual(36, qemu_conf.number('36'))
        for name in ('qemu', '', '+', '-1', '++1', '\u0663'):
            self.assertIsNone(qemu_conf.number(name))
