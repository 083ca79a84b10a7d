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

"""The image that the plugin of devstack makes, made for real.

The rest of the plugin is in tests/unit/test_devstack.py, which has the
stand-ins for devstack as well. Needs the tools of ``bindep devstack``.
"""

import os
import shlex
import unittest

from nova_kvm_ext.boot import testguest
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.unit import test_devstack


class AgentImageTest(test_devstack.PluginTestCase):

    def setUp(self):
        super().setUp()
        try:
            # The build of another place has the same name and content.
            self.expected = testguest.build(str(self.dir / 'expected'))
        except testguest.BuildError as e:
            if os.environ.get(libvirtd.REQUIRE) == '1':
                raise
            raise unittest.SkipTest(str(e))
        # The real one, but for where it would install.
        self._write('bin/python', '#!/bin/bash\n[[ $* != *purelib* ]] || exec '
                    'echo "$SITE"\nexec "$REAL_PYTHON" "$@"\n')

    def test_image(self):
        calls = self.devstack('stack test-config')
        command = shlex.split(calls[-1])
        path = command[command.index('--file') + 1]
        directory = self.dir / 'data/nova-kvm-ext'
        self.assertEqual(str(directory), os.path.dirname(path))
        self.assertEqual(os.path.basename(self.expected.path),
                         os.path.basename(path))
        # Glance's client reads it as an ordinary user.
        self.assertEqual(0o644, os.stat(path).st_mode & 0o777)
        with open(path, 'rb') as image:
            self.assertEqual(b'\x55\xaa', image.read(512)[-2:])

        self.devstack('clean')
        self.assertFalse(directory.exists())

    def test_no_place(self):
        (self.dir / 'data/nova-kvm-ext').write_text('')
        words = self.refused('stack test-config')
        self.assertIn(f'cannot be built in {self.dir}/data/nova-kvm-ext: '
                      f'File exists', words)
        self.assertIn('KVM_EXT_AGENT_IMAGE=False', words)
