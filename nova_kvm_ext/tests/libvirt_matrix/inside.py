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
"""What runs inside a root: asks its libvirt, and starts guests, paused.

A program of the standard library and that Debian's python3-libvirt, with a
request as JSON on standard input and what libvirt said as JSON on standard
output. Judging is done outside.

The request: ``types`` (``kvm``, ``qemu``), ``machines`` for domain
capabilities, ``compare`` (XML of CPUs by name) for
virConnectCompareHypervisorCPU, ``start`` (the same, for each type) for
guests, and ``models``: whether to start a guest of each model that libvirt
knows and of host-model.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any
from xml.etree import ElementTree

import libvirt

ARCH = 'x86_64'
_RUN = '/run/libvirt'
_FILES = {
    # Sockets without authentication are root's alone; there is no polkit.
    'libvirtd.conf': 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'
                     'unix_sock_rw_perms = "0700"\n'
                     'log_outputs = "3:file:/var/log/libvirtd.log"\n',
    # No virtlogd, no control groups: neither has a say about CPUs.
    'qemu.conf': 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\n'
                 'cgroup_controllers = []\nnamespaces = []\n'
                 'stdio_handler = "file"\nhugetlbfs_mount = []\n'
                 'remember_owner = 0\n',
}
_DOMAIN = """<domain type='{kind}'><name>matrix</name>
<memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os>{cpu}
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='usb' model='none'/><memballoon model='none'/>
</devices></domain>"""
_WAIT = 60.0
# VIR_CONNECT_GET_DOMAIN_CAPABILITIES_SUPPORTED_CPU_FEATURES and the release
# that has it, as in cpu/reader.
_SUPPORTED = 1 << 2
_SUPPORTED_SINCE = 12_005_000


def serve() -> libvirt.virConnect:
    """Start libvirtd unless it runs, and connect."""
    if not os.path.exists(f'{_RUN}/libvirt-sock'):
        os.makedirs('/etc/libvirt', exist_ok=True)
        for name, text in _FILES.items():
            with open(f'/etc/libvirt/{name}', 'w') as file:
                file.write(text)
        _add_user()
        subprocess.run(['libvirtd', '--daemon'], check=True,
                       stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            return libvirt.open('qemu:///system')
        except libvirt.libvirtError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _add_user() -> None:
    """The user that Debian 12's libvirtd insists on, though QEMU is root's.

    Only the package libvirt-daemon-system makes it, with much else.
    """
    for path, line in (('/etc/passwd', 'libvirt-qemu:x:64055:64055::/:'),
                       ('/etc/group', 'libvirt-qemu:x:64055:'),
                       ('/etc/group', 'kvm:x:64056:')):
        with open(path, 'r+') as file:
            if not any(one.startswith(line.partition(':')[0] + ':')
                       for one in file):
                file.write(f'{line}\n')


def capabilities(connection: libvirt.virConnect, kind: str,
                 machine: str, flags: int = 0) -> str | None:
    """Domain capabilities; None where there are no such guests."""
    try:
        return connection.getDomainCapabilities(
            None, ARCH, machine, kind, flags)
    except libvirt.libvirtError:
        return None


def compared(connection: libvirt.virConnect, kind: str, cpu: str
             ) -> tuple[bool | None, str]:
    """libvirt's answer about a CPU: yes, no, or None for an error."""
    try:
        result = connection.compareHypervisorCPU(
            None, ARCH, None, kind, cpu,
            libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
    except libvirt.libvirtError as e:
        if e.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            return False, str(e)
        return None, str(e)
    return result > libvirt.VIR_CPU_COMPARE_INCOMPATIBLE, ''


def started(connection: libvirt.virConnect, kind: str, cpu: str
            ) -> tuple[str | None, str]:
    """The CPU that a paused guest got, or None and libvirt's words."""
    try:
        domain = connection.createXML(
            _DOMAIN.format(kind=kind, cpu=cpu),
            libvirt.VIR_DOMAIN_START_PAUSED |
            libvirt.VIR_DOMAIN_START_AUTODESTROY)
    except libvirt.libvirtError as e:
        return None, str(e)[:2000]
    try:
        element = ElementTree.fromstring(domain.XMLDesc()).find('cpu')
        return ('' if element is None else
                ElementTree.tostring(element, encoding='unicode')), ''
    finally:
        domain.destroy()


def models(document: str) -> dict[str, str]:
    """XML by name of the CPUs of every model, and of host-model.

    Those that are called usable with the strictest check first, then all as
    Nova starts them, without a word about checks.
    """
    found = {'host-model, full': "<cpu mode='host-model' check='full'/>",
             'host-model': "<cpu mode='host-model'/>"}
    for model in ElementTree.fromstring(document).iterfind(
            "cpu/mode[@name='custom']/model"):
        checks = [(model.text or '', '')]
        if model.get('usable') == 'yes':
            checks.insert(0, (f'{model.text}, full', " check='full'"))
        for name, check in checks:
            found[name] = (
                f"<cpu mode='custom' match='exact'{check}>"
                f"<model fallback='forbid'>{model.text}</model></cpu>")
    return found


def main() -> None:
    request: dict[str, Any] = json.load(sys.stdin)
    # It would print each error.
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = serve()
    answer: dict[str, Any] = {
        'libvirt': connection.getLibVersion(), 'qemu': connection.getVersion(),
        'documents': {}, 'supported': {}, 'compared': {}, 'started': {}}
    for kind in request['types']:
        documents = {machine: capabilities(connection, kind, machine)
                     for machine in request['machines']}
        answer['documents'][kind] = documents
        if documents and answer['libvirt'] >= _SUPPORTED_SINCE:
            answer['supported'][kind] = capabilities(
                connection, kind, request['machines'][0], _SUPPORTED)
        to_start = dict(request['start'].get(kind, {}))
        first = next(filter(None, documents.values()), None)
        if request['models'] and first:
            to_start |= models(first)
        compares = answer['compared'].setdefault(kind, {})
        for name, cpu in request['compare'].items():
            said = compared(connection, kind, cpu)
            compares[name] = {'asked': cpu, 'answer': said[0],
                              'words': said[1]}
        starts = answer['started'].setdefault(kind, {})
        for number, (name, cpu) in enumerate(to_start.items(), 1):
            # As the driver asks before it starts a guest.
            answer_before, _ = compared(connection, kind, cpu)
            strict = starts.get(f'{name}, full', {}).get('live')
            # What passes the strictest check passes the others.
            live, words = (strict, '') if strict else started(
                connection, kind, cpu)
            # What libvirt itself says of what it has just started.
            said = compared(connection, kind, live) if live else (None, '')
            starts[name] = {'asked': cpu, 'answer_before': answer_before,
                            'live': live, 'words': words,
                            'answer': said[0], 'said': said[1]}
            if number % 25 == 0:
                print(f'  {sys.argv[1]}: {number} of {len(to_start)} guests '
                      f'of type {kind}',
                      file=sys.stderr, flush=True)
    json.dump(answer, sys.stdout)


if __name__ == '__main__':
    main()
