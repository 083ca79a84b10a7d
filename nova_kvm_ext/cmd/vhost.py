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

"""``nova-kvm-ext vhost ...``: which guests of this host use vhost-net.

Parses, reads XML from libvirt and facts from the kernel, has
:mod:`nova_kvm_ext.vhost.proof` judge, prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from collections.abc import Sequence
import contextlib
import sys
from typing import Any

from cliff import lister

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext import words

with lazy.imports():
    import libvirt

    from nova_kvm_ext import live_xml
    from nova_kvm_ext.vhost import process
    from nova_kvm_ext.vhost import proof


class List(base.HostCommand, lister.Lister):
    """Show which network interfaces use vhost-net.

    The command compares the XML of each interface (type, model, driver,
    queues) with what the kernel does for its QEMU: open descriptors of
    /dev/vhost-net, and vhost threads, one of each for a queue. vhost_net is
    yes, no or unknown; the details have the source of the answer. Only root
    can see descriptors; other users see the threads.

    The kernel shows queues, but not the interface of each queue. If a guest
    has several interfaces and not all of them have their queues, some stay
    unknown.

    Exit codes: 0 each interface whose XML names the vhost driver uses
    vhost-net, or this is not known, 2 an interface does not use it, 3 wrong
    command line or configuration, or libvirt cannot be reached or fails.
    """

    COLUMNS = ('name', 'uuid', 'mac', 'type', 'model', 'driver', 'queues',
               'pid', 'descriptors', 'threads', 'vhost_net', 'details')
    # By default a table has what makes a line of at most 80 columns.
    ASIDE = ('uuid', 'type', 'model', 'driver', 'queues', 'pid',
             'descriptors', 'threads')
    EMPTY = 'No running guest has a network interface.'

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = ExitCode.PASS
        return super().run(parsed_args) or int(self._code)

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        nova = base.read_conf(parsed_args.config_files)
        with self.connected(parsed_args, nova, read_only=True) as connection:
            domains = list(_running(connection))
        kernel = process.read_vhost(guest for guest, _ in domains)
        rows: list[dict[str, Any]] = []
        for guest, xml in domains:
            name, uuid = guest.name, guest.uuid
            seen = kernel[uuid]
            for verdict in proof.judge(proof.nics(xml), seen):
                if verdict.broken:
                    self._code = ExitCode.FAIL
                    print(f'warning: {errors.clean(name, 80)} '
                          f'{verdict.nic.mac}: {words.LACKS_VHOST}',
                          file=sys.stderr)
                nic = verdict.nic
                rows.append({
                    'name': errors.clean(name, 80), 'uuid': uuid,
                    'mac': nic.mac, 'type': nic.net_type,
                    'model': nic.model or None, 'driver': nic.driver,
                    'queues': nic.queues, 'pid': seen.pid,
                    'descriptors': seen.descriptors, 'threads': seen.threads,
                    'vhost_net': words.ANSWERS[verdict.uses],
                    'details': columns.Text(verdict.details)})
        return self.COLUMNS, [
            tuple(row[name] for name in self.COLUMNS) for row in rows]


def _running(connection: libvirt.virConnect
             ) -> Iterable[tuple[proof.Running, str]]:
    """Each domain that runs, and its XML."""
    for domain in connection.listAllDomains(
            libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        # One that ends meanwhile has nothing to show.
        with contextlib.suppress(libvirt.libvirtError):
            xml = live_xml.read(domain)
            if xml is None:
                print(f'warning: {errors.clean(domain.name(), 80)} is left '
                      'out: libvirt waits for an answer of its QEMU',
                      file=sys.stderr)
                continue
            guest = proof.running(xml)
            if guest is not None:
                yield guest, xml
