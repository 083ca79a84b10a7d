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

"""Every fault that can be made here, and what the real libvirt says of it.

Each error that libvirt raises must be explained by the row that is meant,
and by no other.
"""

from collections.abc import Callable
import pathlib
from typing import Any

import libvirt
import testtools

from nova_kvm_ext import errors
from nova_kvm_ext import known_errors
from nova_kvm_ext.tests.functional import libvirtd

DOMAIN = """
<domain type='{type}'><name>{name}</name>
<memory unit='MiB'>{memory}</memory>{settings}
<os{os}><type{machine}>hvm</type></os>
<devices>{emulator}
<controller type='usb' model='none'/><memballoon model='none'/>
{devices}</devices></domain>
"""


def domain(name: str = 'fault', *, type: str = 'qemu', memory: int = 16,
           settings: str = '', os: str = '', machine: str = '',
           emulator: str = '', devices: str = '') -> str:
    return DOMAIN.format(**locals())


NEW = 11_003_000
NEWEST = 12_000_000


class FaultTestCase(testtools.TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.private = self.useFixture(libvirtd.PrivateLibvirt())
        self.instances = pathlib.Path(self.private.instances_path)
        # Otherwise libvirt prints each error to standard error.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self.connect()

    def connect(self) -> None:
        self.connection = libvirt.open(self.private.uri)
        self.addCleanup(self.connection.close)
        self.new = self.connection.getLibVersion() >= NEW
        self.newest = self.connection.getLibVersion() >= NEWEST

    def assert_explained(self, name: str, call: Callable[[], Any]) -> None:
        """What the call raises is explained by the row of that name alone."""
        try:
            call()
        except libvirt.libvirtError as e:
            text = known_errors.without_names(str(e))
            self.assertEqual(
                [name], [row.name for row in known_errors.TABLE if
                         row.takes(text, e.get_error_code())], str(e))
            self.assertEqual(name, errors.explain(e).name)
            self.assertIn(errors.explain(e).remedy,
                          errors.with_explanation(e))
        else:
            self.fail(f'{name}: libvirt had no objection')

    def start(self, xml: str) -> None:
        """Define and start a guest as Nova does."""
        domain = self.connection.defineXML(xml)
        try:
            domain.create()
            domain.destroy()
        finally:
            domain.undefine()

    def running(self, machine: str = '',
                devices: str = '') -> libvirt.virDomain:
        found = self.connection.createXML(domain(
            'running', machine=machine, devices=devices))
        self.addCleanup(self.destroy, found)
        return found

    @staticmethod
    def destroy(running: libvirt.virDomain) -> None:
        running.destroy()

    def inside(self, script: str) -> None:
        self.private.run(['sh', '-ec', script])

    def image(self, name: str = 'image', content: bytes = b'') -> str:
        path = self.instances / name
        path.write_bytes(content + bytes(2**20))
        return str(path)
