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

import contextlib
import io
import json
import subprocess
import sys
from unittest import mock

from oslotest import base

from nova_kvm_ext.cmd import lazy

# Runs each command with --help and prints what has been imported.
_HELP = '''
import contextlib, io, json, sys
from nova_kvm_ext.cmd import main
commands = [words.split() for words in json.loads(sys.argv[1])]
for words in commands:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main.main([*words, '--help']) == 0, words
    assert 'usage:' in out.getvalue(), words
print(json.dumps(sorted(sys.modules)))
'''

# Of a second or more together.
_SLOW = {'libvirt', 'nova.conf', 'oslo_config', 'oslo_config.cfg', 'eventlet',
         'nova.privsep', 'jinja2', 'openstack', 'nova_kvm_ext.conf',
         'nova_kvm_ext.host.facts', 'nova_kvm_ext.cpu.choose', 'cmd2'}


# What the commands that timers run each minute do without; oslo.log and Nova
# take a tenth of a second and more.
_METRICS = '''
import sys
from nova_kvm_ext.cmd import entry
assert entry.main(['metrics', '--connect', 'test:///no-such',
                   '--config-file', '/dev/null']) == 0
print(*sorted(sys.modules), file=sys.stderr)
'''


class LazyTestCase(base.BaseTestCase):

    def test_metrics_import_nothing_slow(self):
        done = subprocess.run([sys.executable, '-c', _METRICS], check=True,
                              capture_output=True, text=True)
        self.assertIn('nova_kvm_ext_libvirt_up 0.0', done.stdout)
        imported = set(done.stderr.split())
        self.assertIn('nova_kvm_ext.metrics.text', imported)
        self.assertEqual(set(), imported & {
            'nova.conf', 'oslo_log.log', 'eventlet', 'jinja2',
            'nova_kvm_ext.host.facts', 'oslo_concurrency'})

    def test_help_imports_nothing_slow(self):
        """Of the program and of every command."""
        from nova_kvm_ext.cmd import main
        commands = [name for name, _ in main.NovaKVMExt().command_manager
                    if name not in ('help', 'complete')]
        self.assertGreater(len(commands), 12)
        out = subprocess.run(
            [sys.executable, '-c', _HELP, json.dumps(['', *commands])],
            check=True, capture_output=True, text=True).stdout
        self.assertEqual(set(), _SLOW & set(json.loads(out)))

    def test_a_stand_in_is_the_module_when_it_is_needed(self):
        code = ('from nova_kvm_ext.cmd import lazy\n'
                'import sys\n'
                'with lazy.imports():\n'
                '    import csv\n'
                '    from email import charset as sets\n'
                'assert not {"csv", "email.charset"} & set(sys.modules)\n'
                'assert csv.reader is sys.modules["csv"].reader\n'
                'sets.x = 1\n'
                'assert sys.modules["email.charset"].x == 1\n'
                'del sets.x\n'
                'assert not hasattr(sets, "x")\n'
                'import html\n'
                'assert html is sys.modules["html"]\n')
        subprocess.run([sys.executable, '-c', code], check=True)

    def test_what_is_there_is_taken(self):
        with lazy.imports():
            import json as found
        self.assertIs(json, found)

    def test_no_such_module(self):
        with lazy.imports():
            import no_such_module
        self.assertRaises(ImportError, getattr, no_such_module, 'x')

    def test_help_of_all_at_once_names_each(self):
        from nova_kvm_ext.cmd import main
        with contextlib.redirect_stdout(io.StringIO()) as out, mock.patch(
                'nova_kvm_ext.cmd.main.NovaKVMExt.configure_logging'):
            self.assertEqual(0, main.main(['help']))
        for command in ('host check', 'cpu model list', 'vhost list'):
            self.assertRegex(out.getvalue(), f'  {command} +[A-Z]')
