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

"""The jobs of Zuul: what they name is there.

Zuul itself is not asked; that the parents are what they are taken for shows
when the jobs run.
"""

import configparser
import itertools
import os
import pathlib
import re

import testtools
import yaml

from nova_kvm_ext.cmd import status
from nova_kvm_ext import conf

_ROOT = pathlib.Path(__file__).parents[3]

_PARENTS = {'devstack-tempest', 'openstack-tox', 'run-test-command',
            'tempest-multinode-full-py3'}
"""Jobs of OpenStack's other projects."""

_BRANCHES = {31: 'stable/2025.1', 32: 'stable/2025.2', 33: 'stable/2026.1',
             34: 'stable/2026.2'}
"""https://releases.openstack.org, by the major version of Nova."""


def _expand(name):
    """What tox makes of "py3{,11}"."""
    parts = [part.split(',') if number % 2 else [part]
             for number, part in enumerate(re.split(r'[{}]', name))]
    return map(''.join, itertools.product(*parts))


class ZuulTest(testtools.TestCase):

    def setUp(self):
        super().setUp()
        content = yaml.safe_load((_ROOT / '.zuul.yaml').read_text())
        jobs = [item['job'] for item in content if 'job' in item]
        self.jobs = {job['name']: job for job in jobs}
        self.assertEqual(len(jobs), len(self.jobs), 'two jobs of one name')
        [self.project] = [item['project'] for item in content
                          if 'project' in item]

    def _ancestor(self, name):
        """The first ancestor of a job that is not of this project."""
        while name in self.jobs:
            name = self.jobs[name]['parent']
        return name

    def _localrcs(self):
        for name, job in self.jobs.items():
            for group in job, *job.get('group-vars', {}).values():
                variables = group.get('vars', group)
                if 'devstack_localrc' in variables:
                    yield name, variables

    def test_parents(self):
        self.assertEqual(_PARENTS, set(map(self._ancestor, self.jobs)))

    def test_all_are_run(self):
        run = {name for pipeline in self.project.values()
               if isinstance(pipeline, dict) for name in pipeline['jobs']}
        self.assertEqual(set(self.jobs), run)

    def test_tox_environments(self):
        tox = configparser.ConfigParser(interpolation=None)
        tox.read(_ROOT / 'tox.ini')
        known = {name for section in tox.sections()
                 if section.startswith('testenv:')
                 for name in _expand(section.partition(':')[2])}
        named = {job['vars']['tox_envlist'] for name, job in self.jobs.items()
                 if self._ancestor(name) == 'openstack-tox' and
                 'tox_envlist' in job.get('vars', {})}
        self.assertIn('py3-nova31', named)
        self.assertEqual(set(), named - known)

    def test_commands(self):
        commands = [job['vars']['test_command'] for job in self.jobs.values()
                    if job['parent'] == 'run-test-command']
        self.assertIn('tools/run-tests', commands)
        for command in commands:
            script, *_ = command.split()
            self.assertTrue(os.access(_ROOT / script, os.X_OK), command)

    def test_playbooks(self):
        named = {job['post-run'] for job in self.jobs.values()
                 if 'post-run' in job}
        self.assertEqual({str(path.relative_to(_ROOT))
                          for path in _ROOT.glob('playbooks/*')}, named)
        for name in named:
            [play] = yaml.safe_load((_ROOT / name).read_text())
            for task in play['tasks']:
                # Modules that every Ansible has.
                self.assertTrue(any(key.startswith('ansible.builtin.')
                                    for key in task), task)
                [action] = [value for key, value in task.items()
                            if key.startswith('ansible.builtin.')]
                # Directories and files of this project.
                for path in re.findall(
                        r'(?<=[ /])(?:nova_kvm_ext|tools|test-)[-./\w]*',
                        action['cmd']):
                    self.assertTrue((_ROOT / path).exists(), path)

    def test_releases(self):
        first, last = status.NOVA_RELEASES
        self.assertEqual(set(range(first, last + 1)), set(_BRANCHES))
        for release, branch in _BRANCHES.items():
            job = self.jobs[f'nova-kvm-ext-devstack-nova{release}']
            self.assertEqual(branch, job['override-checkout'])
            self.assertIn(branch.partition('/')[2], job['description'])
            for kind in 'py3', 'conformance':
                job = self.jobs[f'nova-kvm-ext-{kind}-nova{release}']
                self.assertEqual(f'{kind}-nova{release}',
                                 job['vars']['tox_envlist'])
        self.assertEqual(
            _BRANCHES[last],
            self.jobs['nova-kvm-ext-live-migration']['override-checkout'])

    def test_devstack(self):
        options = {option.name: option for option in conf.list_opts()[0][1]}
        found = set()
        for name, variables in self._localrcs():
            found.add(name)
            self.assertEqual({'nova-kvm-ext'},
                             set(variables['devstack_plugins']))
            for setting, value in variables['devstack_localrc'].items():
                if setting.startswith('KVM_EXT_'):
                    option = options[setting.removeprefix('KVM_EXT_').lower()]
                    option.type(value)
        self.assertEqual(
            {'nova-kvm-ext-devstack', 'nova-kvm-ext-live-migration'}, found)

    def test_tempest_expressions(self):
        tests = {
            'tempest.api.compute.servers.test_servers.X.test_y[id-1]':
                {'nova-kvm-ext-devstack'},
            'tempest.scenario.test_minimum_basic.X.test_y[id-1]':
                {'nova-kvm-ext-devstack'},
            'tempest.scenario.test_minimum_basic.X.test_y[id-1,slow]': set(),
            'tempest.api.volume.test_volumes_get.X.test_y[id-1]': set(),
            'tempest.api.compute.admin.test_live_migration.X.test_y[id-1]':
                {'nova-kvm-ext-devstack', 'nova-kvm-ext-live-migration'},
            'tempest.api.compute.admin.test_migrations.X.test_y[id-1]':
                {'nova-kvm-ext-devstack', 'nova-kvm-ext-live-migration'},
            'tempest.scenario.test_shelve_instance.X.test_y[id-1,slow]':
                {'nova-kvm-ext-live-migration'},
        }
        for test, expected in tests.items():
            self.assertEqual(expected, {
                name for name, job in self.jobs.items()
                if 'tempest_test_regex' in job.get('vars', {}) and
                re.search(job['vars']['tempest_test_regex'], test) and
                not re.search(job['vars'].get('tempest_exclude_regex', '$.'),
                              test)}, test)
