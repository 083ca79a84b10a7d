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

"""Domains as libvirt would show them."""

from typing import Any

XML = """<domain type='qemu' id='3'><title>&lt;disk/&gt;</title>
<metadata><nova:instance
 xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata><devices>
<disk type='file' device='disk'><source file='/instances/disk'/>
  <target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>
<disk type='block' device='disk'><source dev='/dev/mapper/v'/>
  <target dev='vdb'/><alias name='ua-1'/></disk>
<disk type='network' device='disk'><source protocol='rbd' name='pool/image'/>
  <target dev='vdc'/></disk>
<disk type='vhostvdpa'><target dev='vdd'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/></disk>
<disk type='file'><source file='/no/target'/></disk>
</devices></domain>"""


class Error(Exception):
    """A libvirtError, which libvirt-python cannot make up."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self._code = code

    def get_error_code(self) -> int:
        return self._code


class Domain:
    """A virDomain that is paused by an I/O error, unless told otherwise.

    :param errors: what diskErrors() gives, or raises
    :param asks: whether QEMU may be asked at all
    """

    def __init__(self, state: tuple[int, int] = (3, 5),
                 errors: dict[str, int] | Exception | None = None,
                 control: tuple[int, int, int] = (0, 0, 0),
                 version: int = 9_000_000, messages: list[str] | None = None,
                 asks: bool = True, xml: str = XML, job: int = 0,
                 uuid: str = '11111111-2222-4333-8444-555555555555') -> None:
        self.now = state
        self.errors = {} if errors is None else errors
        self.control = control
        self.version = version
        self.kept = messages or []
        self.asks = asks
        self.xml = xml
        self.uuid = uuid
        self.job = job
        self.resumed = 0

    def UUIDString(self) -> str:
        return self.uuid

    def state(self, flags: int = 0) -> list[int]:
        return list(self.now)

    def info(self) -> list[int]:
        return [self.now[0], 0, 0, 1, 0]

    def XMLDesc(self, flags: int = 0) -> str:
        if self.version > 9_000_000 and self.control[0] == 2 and (
                self.control[2] >= 1000):
            raise AssertionError('libvirt would wait for QEMU')
        return self.xml

    def controlInfo(self, flags: int = 0) -> list[int]:
        return list(self.control)

    def connect(self) -> 'Domain':
        return self

    def getLibVersion(self) -> int:
        return self.version

    def messages(self, flags: int) -> list[str]:
        if self.version < 11_001_000:
            raise AssertionError('it would log an error')
        return self.kept

    def diskErrors(self, flags: int = 0) -> Any:
        if not self.asks:
            raise AssertionError('QEMU is asked')
        if isinstance(self.errors, Exception):
            raise self.errors
        return self.errors

    def jobInfo(self) -> list[int]:
        return [self.job, *[0] * 11]

    def resume(self) -> int:
        self.resumed += 1
        self.now = (1, 5)
        return 0
