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
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import main
from nova_kvm_ext.cmd import vhost
from nova_kvm_ext.host import model
from nova_kvm_ext.vhost import process

XML = """
<domain type="kvm" id="1">
  <name>instance-00000001</name><uuid>uuid-1</uuid><devices>
  <interface type="bridge"><mac address="52:54:00:00:00:01"/>
    <model type="virtio"/><driver name="vhost" queues="2"/></interface>
  <interface type="ethernet"><mac address="52:54:00:00:00:02"/>
    <model type="e1000"/></interface>
</devices></domain>
"""


class ListTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.kernel = model.VhostFacts(70, 2, 2)
        self.domain = mock.Mock()
        self.domain.XMLDesc.return_value = XML
        self.domain.controlInfo.return_value = [0, 0, 0]
        self.connection = mock.Mock()
        self.connection.listAllDomains.return_value = [self.domain]
        self.connect = self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'libvirt_connection',
            return_value=contextlib.nullcontext(self.connection))).mock
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'read_conf', return_value=mock.Mock()))
        self.read_vhost = self.useFixture(fixtures.MockPatchObject(
            process, 'read_vhost', side_effect=lambda guests: {
                guest.uuid: self.kernel for guest in guests})).mock

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with fixtures.MonkeyPatch('sys.stdout', out), fixtures.MonkeyPatch(
                'sys.stderr', err):
            code = main.main(['vhost', 'list', *arguments])
        return code, out.getvalue(), err.getvalue()

    def rows(self) -> tuple[int, list[dict[str, Any]], str]:
        code, out, err = self.run_command('-f', 'json')
        return code, json.loads(out), err

    def test_kept(self):
        code, rows, _ = self.rows()
        self.assertEqual(0, code)
        self.assertEqual(
            {'name': 'instance-00000001', 'uuid': 'uuid-1',
             'mac': '52:54:00:00:00:01', 'type': 'bridge', 'model': 'virtio',
             'driver': 'vhost', 'queues': 2, 'pid': 70, 'descriptors': 2,
             'threads': 2, 'vhost_net': 'yes'},
            {k: v for k, v in rows[0].items() if k != 'details'})
        self.assertEqual((None, 'no', 'the model e1000 is not virtio'),
                         tuple(rows[1][k] for k in
                               ('driver', 'vhost_net', 'details')))

    def test_lost(self):
        self.kernel = model.VhostFacts(70, 0, 0)
        code, rows, err = self.rows()
        self.assertEqual(2, code)
        self.assertEqual('no', rows[0]['vhost_net'])
        self.assertIn('52:54:00:00:00:01: does not use vhost-net', err)

    def test_may_not_look(self):
        self.kernel = model.VhostFacts(70, None, None)
        code, rows, err = self.rows()
        self.assertEqual(0, code)
        self.assertEqual('unknown', rows[0]['vhost_net'])
        self.assertIsNone(rows[0]['descriptors'])
        self.assertIn('may not look', rows[0]['details'])

    def test_for_people(self):
        _, out, _ = self.run_command()
        self.assertIn('2 descriptor(s)', out)
        self.assertNotIn('uuid-1', out)

    def test_nobody_runs(self):
        self.connection.listAllDomains.return_value = []
        self.assertEqual((0, []), self.rows()[:2])

    def test_a_domain_that_ends_meanwhile(self):
        gone = mock.Mock()
        gone.XMLDesc.side_effect = vhost.libvirt.libvirtError('no domain')
        gone.controlInfo.side_effect = vhost.libvirt.libvirtError('no domain')
        off = mock.Mock()
        off.XMLDesc.return_value = '<domain type="kvm"/>'
        off.controlInfo.return_value = [0, 0, 0]
        self.connection.listAllDomains.return_value = [gone, off, self.domain]
        self.assertEqual(2, len(self.rows()[1]))

    def test_a_guest_that_hangs(self):
        hangs = mock.Mock()
        hangs.name.return_value = 'hangs'
        hangs.controlInfo.return_value = [2, 0, 60000]
        hangs.connect.return_value.getLibVersion.return_value = 11_003_000
        self.connection.listAllDomains.return_value = [hangs, self.domain]
        code, rows, err = self.rows()
        self.assertEqual((0, 2), (code, len(rows)))
        self.assertIn('hangs is left out: libvirt waits', err)
        hangs.XMLDesc.assert_not_called()

    def test_only_reads(self):
        self.rows()
        self.assertTrue(self.connect.call_args.args[1])

    def test_libvirt_fails(self):
        self.connection.listAllDomains.side_effect = (
            vhost.libvirt.libvirtError('broken'))
        code, _, err = self.run_command()
        self.assertEqual(3, code)
        self.assertTrue(err.startswith('error: '), err)
