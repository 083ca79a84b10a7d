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
from typing import Any
from unittest import mock

import fixtures
import libvirt
from openstack import exceptions
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import main
from nova_kvm_ext.cmd import repair as repair_command
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import cloud
from nova_kvm_ext.guests import reasons
from nova_kvm_ext.migration import comeback
from nova_kvm_ext.migration import elsewhere
from nova_kvm_ext.migration import records
from nova_kvm_ext.migration import repair

UUID = '11111111-2222-4333-8444-555555555555'


class Answer:

    def __init__(self, body=None, code=200):
        self.status_code = code
        self.body = body
        self.content = b'' if body is None else b'x'
        self.text = f'said\n{code}'

    def json(self):
        return self.body


class Cloud:
    """Nova, Placement and Neutron after the fault."""

    def __init__(self):
        self.server: dict[str, Any] = {
            'id': UUID, 'OS-EXT-SRV-ATTR:host': 'src',
            'OS-EXT-STS:vm_state': 'error', 'OS-EXT-STS:task_state': None,
            'fault': {'message': 'x'}}
        self.migrations = [
            {'id': 7, 'uuid': 'm', 'migration_type': 'live-migration',
             'source_compute': 'src', 'dest_compute': 'dst',
             'status': 'error'},
            {'id': 3, 'uuid': 'o', 'migration_type': 'live-migration',
             'source_compute': 'x', 'dest_compute': 'src',
             'status': 'completed'},
            {'id': 9, 'uuid': 'r', 'migration_type': 'resize',
             'source_compute': 'a', 'dest_compute': 'b', 'status': 'done'}]
        self.allocations = {UUID: {'dst-rp': 1, 'pool': 1},
                            'm': {'src-numa': 1, 'pool': 1}}
        self.bindings = {'src': 'ACTIVE', 'dst': 'INACTIVE'}
        self.code = {}
        self.page = None
        self.compute = self.placement = self.network = self
        self.block_storage = self
        self.attached = 'dst'

    def request(self, path, method, raise_exc, json, microversion=''):
        path, _, query = path.partition('?')
        if path in self.code:
            return Answer(code=self.code[path])
        parts = path.split('/')
        if path == f'/servers/{UUID}':
            return Answer({'server': self.server})
        if path == f'/servers/{UUID}/action':
            self.server['OS-EXT-STS:vm_state'] = (
                json['os-resetState']['state'])
            return Answer(code=202)
        if path == f'/servers/{UUID}/os-volume_attachments':
            assert microversion == '2.89'
            return Answer({'volumeAttachments': [
                {'volumeId': 'v', 'attachment_id': 'new'}]})
        if path == '/volumes/v':
            return Answer({'volume': {'attachments': [
                {'attachment_id': 'old', 'host_name': 'src'},
                {'attachment_id': 'new', 'host_name': self.attached}]}})
        if path == '/os-migrations':
            return Answer({'migrations': self.migrations})
        if path == '/os-hypervisors/detail':
            found = [
                {'id': f'{host}-rp', 'service': {'host': host},
                 'host_ip': f'192.0.2.{number}'}
                for number, host in enumerate(('src', 'dst'))]
            if self.page is None:
                return Answer({'hypervisors': found})
            # Nova links to a next page where this one is full.
            first = 1 + next((
                number for number, each in enumerate(found)
                if query == f'marker={each["id"]}'), -1)
            found = found[first:first + self.page]
            return Answer({'hypervisors': found} | (
                {'hypervisors_links': [{'rel': 'next', 'href': 'x'}]}
                if len(found) == self.page else {}))
        if path.startswith('/resource_providers/'):
            return Answer({'root_provider_uuid': {
                'src-numa': 'src-rp'}.get(parts[2], parts[2])})
        if method == 'POST' and path == '/allocations':
            for consumer, found in json.items():
                assert found['consumer_generation'] == 5
                self.allocations[consumer] = {
                    provider: each['resources']
                    for provider, each in found['allocations'].items()}
            return Answer(code=204)
        if path.startswith('/allocations/'):
            return Answer({
                'allocations': {
                    provider: {'resources': found} for provider, found in
                    self.allocations[parts[2]].items()},
                'project_id': 'p', 'user_id': 'u', 'consumer_generation': 5})
        if path == '/v2.0/ports':
            return Answer({'ports': [{'id': 'port', 'binding:host_id': next(
                host for host, status in self.bindings.items()
                if status == 'ACTIVE')}]})
        if method == 'PUT' and parts[-1] == 'activate':
            assert parts[-2] in self.bindings
            self.bindings = {
                host: 'ACTIVE' if host == parts[-2] else 'INACTIVE'
                for host in self.bindings}
            return Answer({})
        if method == 'DELETE':
            del self.bindings[parts[-1]]
            return Answer(code=204)
        if path == '/v2.0/ports/port/bindings':
            return Answer({'bindings': [
                {'host': host, 'status': status}
                for host, status in self.bindings.items()]})
        raise AssertionError(path)


class RepairTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.cloud = Cloud()
        self.useFixture(fixtures.MockPatchObject(
            cloud, 'connect', side_effect=lambda name: self.cloud))
        self.neutron = self.useFixture(fixtures.MockPatchObject(
            records, 'neutron', return_value=self.cloud)).mock
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'libvirt_connection',
            return_value=contextlib.nullcontext(mock.Mock(**{
                'getCapabilities.return_value':
                    '<capabilities>\n <host>\n  <uuid>our-own</uuid>'}))))
        self.nova = mock.Mock(host='dst', instances_path='/i')
        self.nova.libvirt.live_migration_uri = 'qemu+tls://%s/system'
        self.nova.libvirt.live_migration_with_native_tls = False
        self.nova.libvirt.live_migration_tunnelled = False
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'read_conf', return_value=self.nova))
        self.here, self.there = True, False
        self.known = True
        self.leads_back = self.hangs = self.torn = False
        self.disks: tuple[reasons.Disk, ...] = ()
        self.asked = []
        self.useFixture(fixtures.MockPatchObject(
            comeback, 'look',
            side_effect=lambda *args: comeback.Here(
                self.here, disks=self.disks, hangs=self.hangs,
                torn=self.torn)))
        self.useFixture(fixtures.MockPatchObject(
            elsewhere, 'ask', self.ask))
        self.move = self.useFixture(fixtures.MockPatchObject(
            comeback, 'move', side_effect=self.moves)).mock
        self.files = repair.Files('/i/' + UUID, True)
        self.useFixture(fixtures.MockPatchObject(
            comeback, 'files', side_effect=lambda *args: self.files))
        self.remove = self.useFixture(fixtures.MockPatchObject(
            comeback, 'remove')).mock

    def ask(self, uris, uuid, own):
        self.asked = list(uris)
        self.assertEqual('our-own', own)
        if self.leads_back:
            return elsewhere.Found(None, 'x leads back', 'x', itself=True)
        return elsewhere.Found(self.there if self.known else None,
                               '' if self.known else 'no route', uris[0])

    def moves(self, *args):
        self.here, self.there = False, True

    def run_command(self, *arguments, answers=''):
        out, err = io.StringIO(), io.StringIO()
        with (fixtures.MonkeyPatch('sys.stdout', out),
              fixtures.MonkeyPatch('sys.stderr', err),
              fixtures.MonkeyPatch('sys.stdin', io.StringIO(answers))):
            code = main.main(['guest', 'repair-migration', UUID,
                              '--os-cloud', 'c', '-f', 'json', *arguments])
        self.err = err.getvalue()
        return code, [row['result'] for row in json.loads(
            out.getvalue() or '[]')]

    def mended(self):
        self.assertEqual('active', self.cloud.server['OS-EXT-STS:vm_state'])
        self.assertEqual({'src-numa': 1, 'pool': 1},
                         self.cloud.allocations[UUID])
        self.assertEqual({}, self.cloud.allocations['m'])
        self.assertEqual({'src': 'ACTIVE'}, self.cloud.bindings)

    def test_all(self):
        self.assertEqual((0, ['done'] * 5), self.run_command('--yes'))
        self.mended()
        self.remove.assert_called_once_with('/i/' + UUID, UUID)
        self.assertEqual(['qemu+tls://src/system',
                          'qemu+tls://192.0.2.0/system'], self.asked)
        # Once more there is nothing to do.
        self.files = repair.Files()
        self.assertEqual((0, ['nothing to do'] * 5), self.run_command())

    def test_hypervisors_of_many_pages(self):
        """[api] max_limit, 1000, is less than some clouds have."""
        self.cloud.page = 1
        self.assertEqual((0, ['done'] * 5), self.run_command('--yes'))
        self.mended()
        self.assertEqual(['qemu+tls://src/system',
                          'qemu+tls://192.0.2.0/system'], self.asked)

    def test_memory_is_sent_as_nova_sends_it(self):
        for option, way in (('live_migration_with_native_tls', 'tls'),
                            ('live_migration_tunnelled', 'tunnelled')):
            self.here, self.there = True, False
            with mock.patch.object(self.nova.libvirt, option, True):
                self.run_command('--yes')
            self.assertEqual(way, self.move.call_args.args[-1])
        self.here, self.there = True, False
        self.run_command('--yes')
        self.assertEqual('', self.move.call_args.args[-1])

    def test_disks_that_are_copied(self):
        """libvirt refuses to copy a configuration drive."""
        self.disks = (
            reasons.Disk('vda', '', reasons.Place.FILE, '/i/disk'),
            reasons.Disk('sda', '', reasons.Place.FILE, '/i/disk.config',
                         fixed=True))
        for wanted, copied in (('yes', ['vda']), ('no', [])):
            self.here, self.there = True, False
            self.run_command('--yes', '--copy-disks', wanted)
            self.assertEqual(copied, self.move.call_args.args[3])

    def test_asks_before_each(self):
        code, results = self.run_command(answers='y\nno\nYES\n\n')
        self.assertEqual((1, ['done', 'declined', 'done', 'declined',
                              'declined']), (code, results))
        self.remove.assert_not_called()
        self.assertEqual(5, self.err.count('[y/N]'))
        self.assertIn('as: rm -r /i/' + UUID, self.err)

    def test_nobody_to_ask(self):
        """The standard input is closed, as by "<&-"."""
        with mock.patch.object(repair_command.sys, 'stdin', None):
            self.assertFalse(repair_command._agreed(
                repair.Step(repair.Name.FILES, True, 'x')))

    def test_dry_run(self):
        code, results = self.run_command('--dry-run', '--yes')
        self.assertEqual((1, ['declined', 'left alone', 'left alone',
                              'declined', 'left alone']), (code, results))
        self.move.assert_not_called()
        self.assertEqual(2, len(self.cloud.bindings))

    def test_move_fails(self):
        self.move.side_effect = libvirt.libvirtError('no way')
        code, results = self.run_command('--yes')
        self.assertEqual((2, ['failed', 'left alone', 'left alone', 'done',
                              'left alone']), (code, results))
        self.remove.assert_not_called()
        self.assertEqual({'dst-rp': 1, 'pool': 1},
                         self.cloud.allocations[UUID])

    def test_source_that_cannot_be_asked(self):
        # libvirt there takes no guest twice, and says when it has come.
        self.known = False
        self.assertEqual((0, ['done'] * 5), self.run_command('--yes'))
        self.mended()

    def test_runs_on_both(self):
        self.there = True
        code, results = self.run_command('--yes')
        self.assertEqual((1, 'left alone'), (code, results[0]))
        self.move.assert_not_called()
        self.remove.assert_not_called()

    def test_volumes(self):
        """The next start may fail, so this is no 0."""
        self.cloud.server['os-extended-volumes:volumes_attached'] = [
            {'id': 'v'}]
        done = ['done'] * 4
        self.assertEqual((1, [*done, 'left alone', 'done']),
                         self.run_command('--yes'))
        self.mended()
        self.files = repair.Files()
        for attached, code, what in (
                ('src', 0, 'nothing to do'), (None, 1, 'left alone')):
            self.cloud.attached = attached
            found, results = self.run_command('--yes')
            self.assertEqual((code, what), (found, results[4]))
        self.cloud.code['/volumes/v'] = 403
        found, results = self.run_command('--yes')
        self.assertEqual((1, 'left alone'), (found, results[4]))
        with mock.patch.object(
                Cloud, 'block_storage', mock.PropertyMock(
                    side_effect=exceptions.NotSupported('no such service')),
                create=True):
            found, results = self.run_command('--yes')
        self.assertEqual((1, 'left alone'), (found, results[4]))

    def test_after_a_switch_to_post_copy(self):
        """Nova has bound the ports to this host by then."""
        self.cloud.migrations[0]['status'] = 'running (post-copy)'
        self.cloud.bindings = {'src': 'INACTIVE', 'dst': 'ACTIVE'}
        self.assertEqual((0, ['done'] * 5), self.run_command('--yes'))
        self.mended()

    def test_post_copy_that_failed(self):
        """"Two guests: end the other" would lose the guest's memory."""
        self.there = self.torn = True
        self.assertEqual((2, []), self.run_command('--yes'))
        self.assertIn('--postcopy-resume', self.err)
        self.assertNotIn('two guests', self.err)
        self.move.assert_not_called()
        self.remove.assert_not_called()

    def test_address_that_leads_back_here(self):
        """This libvirt's word would be taken for that of the other one."""
        self.leads_back = True
        self.assertEqual((3, []), self.run_command('--yes'))
        self.assertIn('x leads back, not to src', self.err)
        self.assertIn('--source-uri', self.err)
        self.move.assert_not_called()

    def test_qemu_that_hangs(self):
        self.hangs = True
        self.assertEqual((2, []), self.run_command('--yes'))
        self.assertIn('does not answer libvirt', self.err)

    def test_another_case(self):
        for change in ({'OS-EXT-SRV-ATTR:host': 'dst'},
                       {'OS-EXT-SRV-ATTR:host': None},
                       {'OS-EXT-STS:task_state': 'migrating'},
                       {'OS-EXT-SRV-ATTR:host': 'x'}):
            self.cloud = Cloud()
            self.cloud.server |= change
            code, results = self.run_command('--yes')
            self.assertEqual((2, []), (code, results), str(change))
            self.assertIn('Nothing is done', self.err)
        self.move.assert_not_called()

    def test_services_that_fail(self):
        self.cloud.code['/v2.0/ports/port/bindings'] = 403
        self.cloud.code['/allocations/m'] = 503
        code, results = self.run_command('--yes')
        self.assertEqual((1, ['done', 'done', 'left alone', 'left alone',
                              'done']), (code, results))
        self.cloud.code[f'/servers/{UUID}'] = 404
        code, results = self.run_command('--yes')
        self.assertEqual((3, []), (code, results))
        self.assertIn('404', self.err)

    def test_steps_that_fail(self):
        self.remove.side_effect = PermissionError('no')
        self.cloud.code['/allocations'] = 409
        self.cloud.code['/v2.0/ports/port/bindings/dst'] = 500
        self.cloud.code[f'/servers/{UUID}/action'] = 403
        self.assertEqual((2, ['done', *['failed'] * 4]),
                         self.run_command('--yes'))

    def test_no_neutron(self):
        self.neutron.side_effect = errors.HostError('no [neutron]')
        code, results = self.run_command('--yes')
        self.assertEqual((1, 'left alone'), (code, results[3]))

    def test_command_line(self):
        with fixtures.EnvironmentVariable('OS_CLOUD'):
            with (fixtures.MonkeyPatch('sys.stderr', io.StringIO())):
                self.assertEqual(3, main.main(
                    ['guest', 'repair-migration', UUID]))
                self.assertEqual(3, main.main(
                    ['guest', 'repair-migration', 'x', '--os-cloud', 'c']))

    def test_uris(self):
        self.run_command('--dry-run', '--source-uri', 'qemu+ssh://a/system')
        self.assertEqual(['qemu+ssh://a/system'], self.asked)
        self.nova.libvirt.live_migration_uri = None
        self.nova.libvirt.live_migration_scheme = None
        self.run_command('--dry-run')
        self.assertEqual('qemu+tcp://src/system', self.asked[0])
        self.nova.libvirt.live_migration_uri = 'qemu:///system'
        code, _ = self.run_command('--dry-run')
        self.assertEqual(3, code)
