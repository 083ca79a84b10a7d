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

"""How nova-compute runs: by fake processes, units and programs."""

import os
import pwd
import sys

import fixtures
from oslotest import base

from nova_kvm_ext.host import service
from nova_kvm_ext.tests.unit.host import fake_proc

ME = os.geteuid()


class ServiceTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.proc = self.useFixture(fake_proc.FakeProc())
        self.root = self.useFixture(fixtures.TempDir())
        self.useFixture(fixtures.EnvironmentVariable('PATH', '/none'))
        self.useFixture(fixtures.EnvironmentVariable('SUDO_UID'))

    def find(self) -> service.Service:
        return service.find(self.proc.path, self.root.path)

    def write(self, path: str, text: str) -> str:
        path = os.path.join(self.root.path, path.lstrip('/'))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as f:
            f.write(text)
        return path

    def test_nothing(self):
        found = self.find()
        self.assertEqual((None, (), (), ''), (
            found.pid, found.arguments, found.python, found.how))

    def test_words_that_start_it(self):
        for words, python, program, arguments in (
                ('/v/bin/python3 /v/bin/nova-compute', '/v/bin/python3',
                 'nova-compute', ''),
                ('/usr/bin/python3.13 -s -W x /usr/bin/nova-compute '
                 '--config-file=/a', '/usr/bin/python3.13 -s -W x',
                 'nova-compute', '--config-file=/a'),
                ('/v/bin/python -m nova.cmd.compute --debug',
                 '/v/bin/python', 'compute', '--debug'),
                ('/v/bin/nova-compute --config-dir /b', '', 'nova-compute',
                 '--config-dir /b')):
            self.proc.clear()
            self.proc.add(7, words.split())
            found = self.find()
            self.assertEqual(
                (7, python, program, arguments),
                (found.pid, ' '.join(found.python), found.program,
                 ' '.join(found.arguments)))

    def test_words_of_others(self):
        for number, words in enumerate((
                'sudo nova-compute', '/bin/sh -c nova-compute',
                'vi /etc/nova/nova-compute.conf', 'python3',
                'python3 /usr/bin/nova-conductor', 'python3 -c nova-compute',
                'python3 -m nova.cmd.conductor', 'tail -f nova-compute',
                'python3 -s', 'privsep-helper --config-file nova-compute')):
            self.proc.add(number + 1, words.split())
        self.assertIsNone(self.find().pid)

    def test_a_relative_python_is_looked_for_in_its_path(self):
        directory = self.useFixture(fixtures.TempDir())
        python = directory.join('python3')
        os.symlink(sys.executable, python)
        self.proc.add(7, ['python3', '/x/nova-compute'],
                      environment={'PATH': directory.path})
        self.assertEqual((python,), self.find().python)

    def test_environment_and_user(self):
        self.proc.add(7, ['python3', 'nova-compute'], groups=(5, 6),
                      environment={'HOME': '/var/lib/nova', 'A': 'b=c'})
        found = self.find()
        self.assertEqual(('/var/lib/nova', 'b=c', ME, (5, 6)), (
            found.home, found.environment['A'], found.user[0],
            found.user[2]))

    def test_where_its_files_are(self):
        for kwargs, wanted in (
                ({}, False), ({'mount': 'mnt:[9]'}, True),
                ({'root': '/srv/chroot'}, True), ({'mount': None}, None)):
            self.proc.clear()
            self.proc.add(7, ['python3', 'nova-compute'], **kwargs)
            self.assertIs(wanted, self.find().elsewhere)

    def test_many_of_one_kind_are_one(self):
        for pid in (7, 8):
            self.proc.add(pid, ['/p/python3', 'nova-compute'])
        self.assertEqual(7, self.find().pid)

    def test_one_with_our_files_counts(self):
        self.proc.add(7, ['/p/python3', 'nova-compute'], mount='mnt:[9]')
        self.proc.add(8, ['/q/python3', 'nova-compute'])
        self.assertEqual(8, self.find().pid)

    def test_different_ones_are_not_guessed(self):
        self.proc.add(7, ['/p/python3', 'nova-compute'])
        self.proc.add(8, ['/p/python3', 'nova-compute', '--config-file=/a'])
        found = self.find()
        self.assertIsNone(found.pid)
        self.assertIn('(processes 7, 8)', found.notes[0])
        self.assertIn('--config-file', found.notes[0])

    def test_whose_words_count(self):
        other = ME + 4000
        mount = {'mount': 'mnt:[9]'}
        for kwargs, trusted in (
                ({'uid': 0}, True), ({'uid': ME}, True),
                ({'uid': other}, False),
                # Only an administrator makes that, as Docker does.
                ({'uid': other, **mount}, True),
                # Every user can make that.
                ({'uid': other, **mount, 'users': 'user:[9]'}, False),
                ({'uid': other, **mount, 'users': None}, False)):
            self.proc.clear()
            self.proc.add(7, ['python3', 'nova-compute'], **kwargs)
            found = self.find()
            self.assertEqual(trusted, found.pid == 7, str(kwargs))
            self.assertEqual(not trusted, bool(found.notes))
        self.assertIn('process 7 has the command line of nova-compute',
                      found.notes[0])
        self.useFixture(fixtures.EnvironmentVariable(
            'SUDO_UID', str(other)))
        self.assertEqual(7, self.find().pid)

    def test_the_account_of_the_unit(self):
        account = pwd.getpwnam('daemon')
        self.proc.add(7, ['python3', 'nova-compute'], uid=account.pw_uid)
        self.assertIsNone(self.find().pid)
        self.write('/etc/systemd/system/devstack@n-cpu.service',
                   '[Service]\nUser = daemon\nExecStart = /x/nova-compute\n')
        self.assertEqual(7, self.find().pid)

    def test_a_process_that_ends_meanwhile(self):
        self.proc.add(7, ['python3', 'nova-compute'])
        os.unlink(os.path.join(self.proc.path, '7', 'status'))
        self.assertIsNone(self.find().pid)

    def test_unit(self):
        path = self.write(
            '/usr/lib/systemd/system/openstack-nova-compute.service', """
[Unit]
Description=Nova, with % signs and: colons
[Service]
Type=notify
User=daemon
ExecStart=-/usr/bin/python3 -s /usr/bin/nova-compute \\
  --config-file /usr/share/nova/nova-dist.conf $MORE \\
  --config-file /etc/nova/nova.conf
""")
        found = self.find()
        self.assertEqual(
            ('/usr/bin/python3 -s',
             '--config-file /usr/share/nova/nova-dist.conf '
             '--config-file /etc/nova/nova.conf', f'the unit {path}'),
            (' '.join(found.python), ' '.join(found.arguments), found.how))
        self.assertEqual(pwd.getpwnam('daemon').pw_uid, found.user[0])
        self.write('/etc/systemd/system/openstack-nova-compute.service.d/'
                   'x.conf', '[Service]\nExecStart=\nExecStart=/usr/bin/'
                   'python3 /usr/bin/nova-compute --config-dir /c\n')
        self.write('/etc/systemd/system/openstack-nova-compute.service.d/'
                   'y.conf', 'no section\n')
        self.assertEqual(('--config-dir', '/c'), self.find().arguments)

    def test_a_process_comes_before_a_unit(self):
        self.write('/lib/systemd/system/nova-compute.service',
                   '[Service]\nExecStart=/usr/bin/python3 /b/nova-compute\n')
        self.assertIn('unit', self.find().how)
        self.proc.add(7, ['python3', 'nova-compute'])
        self.assertEqual('process 7', self.find().how)

    def test_a_unit_that_runs_another_program(self):
        for line in ('/etc/init.d/nova-compute systemd-start', '', '"', '@'):
            self.write('/lib/systemd/system/nova-compute.service',
                       f'[Service]\nUser=daemon\nExecStart={line}\n')
            found = self.find()
            self.assertEqual(((), pwd.getpwnam('daemon').pw_dir),
                             (found.arguments, found.home))

    def test_program(self):
        for text, python in (
                ('#!/usr/bin/python3\nx', '/usr/bin/python3'),
                ('#! /usr/bin/python3 -s\nx', '/usr/bin/python3 -s'),
                ('#!/bin/sh\n\'\'\'exec\' /a/very/long/python "$0" "$@"\n',
                 '/a/very/long/python'),
                ('#!/bin/sh\nexec something\n', ''),
                ('#!/usr/bin/env nothing-like-it\n', ''),
                ('\x7fELF', ''), ('', '')):
            path = self.write('/usr/bin/nova-compute', text)
            found = self.find()
            self.assertEqual(python, ' '.join(found.python))
            self.assertEqual('the program /usr/bin/nova-compute' if python
                             else '', found.how)
        os.unlink(path)
        os.makedirs(path)
        self.assertEqual((), self.find().python)

    def test_program_in_path(self):
        self.write('/opt/x/nova-compute', '#!/opt/x/python3\n')
        self.assertEqual((), self.find().python)
        self.useFixture(fixtures.EnvironmentVariable('PATH', '.:/opt/x'))
        self.assertEqual(('/opt/x/python3',), self.find().python)
