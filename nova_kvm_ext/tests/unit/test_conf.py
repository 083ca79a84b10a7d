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

import fixtures
from oslotest import base

from nova_kvm_ext import conf


class SampleTestCase(base.BaseTestCase):

    def test_help_fits_into_the_sample(self):
        """The generator breaks longer lines, and leaves one word alone."""
        self.assertEqual([], [
            f'{opt.name}: {line}' for _, opts in conf.list_opts()
            for opt in opts for line in (opt.help or '').splitlines()
            if len(line) > 77])

    def test_sample_is_what_the_generator_makes(self):
        """Repair a failure with ``tox -e genconfig``."""
        top = os.path.join(os.path.dirname(__file__), *3 * [os.pardir])
        config_file = 'etc/nova-kvm-ext/config-generator.conf'
        if not os.path.exists(os.path.join(top, config_file)):
            self.skipTest('no checkout: the sample is not installed')
        from oslo_config import generator
        work_dir = self.useFixture(fixtures.TempDir()).path
        fresh = os.path.join(work_dir, 'sample')
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(top)
        generator.main(['--config-file', config_file,
                        '--output-file', fresh])
        with open(fresh) as f:
            wanted = f.read()
        with open('etc/nova-kvm-ext/nova-kvm-ext.conf.sample') as f:
            self.assertEqual(wanted, f.read())
