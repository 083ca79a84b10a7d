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

"""Reads what a running guest reports on its console or through its agent.

Every answer is the guest's own and hostile input. It is limited here and in
:mod:`nova_kvm_ext.guest_agent.client`, and parsed in
:mod:`nova_kvm_ext.boot.report`.
"""

import base64
import os
from typing import Any

from nova_kvm_ext.boot import report
from nova_kvm_ext.cpu import vulnerabilities
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import replies

_CONSOLE_BYTES = 1024 * 1024
_FILE_BYTES = 128 * 1024


def read_console(path: str) -> str:
    """The newest part of a console log, '' while there is none."""
    try:
        with open(path, 'rb') as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - _CONSOLE_BYTES))
            return f.read(_CONSOLE_BYTES).decode('utf-8', 'replace')
    except FileNotFoundError:
        return ''


class Agent:
    """The QEMU guest agent of a running domain.

    https://qemu-project.gitlab.io/qemu/interop/qemu-ga-ref.html

    :param domain: a libvirt.virDomain
    :param timeout: seconds that a command may take
    """

    def __init__(self, domain: Any, timeout: int = 5) -> None:
        self._agent = client.Agent(domain, timeout)

    def command(self, name: str, **arguments: Any) -> Any:
        """Give a command.

        :returns: the answer, or None where there was none that makes sense
        """
        try:
            return self._agent.ask(
                name, lambda reply: replies.returned(reply, name),
                **arguments)
        except errors.AgentError:
            return None

    def ping(self) -> str | None:
        """Version and answer in one sentence, None without an answer."""
        if self.command('guest-ping') is None:
            return None
        info = self.command('guest-info')
        version = info.get('version') if isinstance(info, dict) else None
        return 'answers to ping, version ' + errors.clean(
            version or 'unknown', 40)

    def read_file(self, path: str) -> str:
        """A small text file of the guest, '' where the agent refuses."""
        handle = self.command('guest-file-open', path=path, mode='r')
        if not isinstance(handle, int):
            return ''
        answer = self.command('guest-file-read', handle=handle,
                              count=_FILE_BYTES)
        self.command('guest-file-close', handle=handle)
        try:
            return base64.b64decode(answer['buf-b64']).decode(
                'utf-8', 'replace')
        except (ValueError, LookupError, TypeError):
            return ''

    def report(self) -> report.GuestReport | None:
        """The facts of a guest that is not the test guest, from its files."""
        return report.from_proc(self.read_file('/proc/cpuinfo'),
                                self.read_file('/proc/meminfo'),
                                self._vulnerabilities())

    def _vulnerabilities(self) -> dict[str, str]:
        """What the guest's Linux says about the flaws that are known here."""
        names = {mitigation.file for mitigation in
                 (*vulnerabilities.INTEL, *vulnerabilities.AMD)}
        found: dict[str, str] = {}
        for name in sorted(names):
            text = self.read_file(f'{vulnerabilities.DIRECTORY}/{name}')
            if text:
                found[name] = text
            elif not found:
                # No Linux, an old one, or an agent that may not read files.
                break
        return found
