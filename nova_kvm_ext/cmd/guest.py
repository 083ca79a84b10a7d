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

"""``nova-kvm-ext guest ...``: guests on this host, without a cloud.

Parses, calls :mod:`nova_kvm_ext.boot.supervisor`, prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
import re
import sys
import time
from typing import Any

from cliff import show

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    from nova_kvm_ext.boot import spec
    from nova_kvm_ext.boot import supervisor
    from nova_kvm_ext.host import configuration


def _text(text: str) -> str:
    """An argument that can be written to a file: bytes may be none."""
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f'{text!r} is not plain text')
    return text


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = _text(text).partition('=')
    if not key or not equals:
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    return key, value


def _setting(text: str) -> tuple[str, str, str]:
    found = re.fullmatch(r'(?:(\w+)\.)?(\w+)=(.*)', _text(text))
    if found is None:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not GROUP.OPTION=VALUE')
    return found[1] or 'DEFAULT', found[2], found[3]


def _nic(text: str) -> str | None:
    if text == 'none':
        return None
    # The kernel's dev_valid_name() and IFNAMSIZ.
    found = re.fullmatch(r'bridge=([^\s/:]{1,15})', text)
    if found is None or found[1] in ('.', '..'):
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither none nor bridge=NAME')
    return found[1]


class Boot(base.Command, show.ShowOne):
    """Boot a test guest through the driver, and check the guest.

    The command runs the driver's real init_host and spawn on this host's
    libvirt, compares the running guest with what its XML promises (CPU model
    and flags, vCPUs, memory, guest agent, network card), and destroys the
    guest. Other guests are not touched, and nothing is left behind. Needs
    root.

    Without --image, a small test guest is built from this host's kernel,
    busybox and qemu-ga.

    Exit codes: 0 the guest has everything that its XML promises, 2 something
    is missing, 3 wrong command line or configuration, or the host lacks
    something, 4 the guest was refused or was not up in time, 5 something could
    not be removed, 128+N ended by signal N.
    """

    COLUMNS = ('result', 'exit_code', 'seconds', 'virt_type', 'machine',
               'cpu_mode', 'cpu_model', 'error', 'config_files', 'checks',
               'vulnerabilities', 'steps', 'domain', 'xml')
    # People have seen these already, each when it was there.
    ASIDE = COLUMNS[7:]

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--image', metavar='FILE', type=os.path.abspath,
            help='image file to boot; by default a small test guest')
        parser.add_argument(
            '--disk-format', metavar='FORMAT',
            help='format of the image as Glance would declare it; by default '
                 'what its content says')
        parser.add_argument(
            '--property', metavar='KEY=VALUE', type=_pair, action='append',
            default=[], dest='properties',
            help='image property; the test guest has hw_qemu_guest_agent=yes '
                 'unless you say otherwise, or this host has no qemu-ga '
                 '(repeat for more)')
        parser.add_argument(
            '--extra-spec', metavar='KEY=VALUE', type=_pair, action='append',
            default=[], dest='extra_specs',
            help='flavor extra spec (repeat for more)')
        parser.add_argument(
            '--vcpus', type=base.positive, default=1, metavar='N',
            help='virtual CPUs, default %(default)s')
        parser.add_argument(
            '--memory', type=base.positive, default=256, metavar='MIB',
            help='memory in MiB, default %(default)s')
        parser.add_argument(
            '--nic', type=_nic, default='none', metavar='none|bridge=NAME',
            help='network interface: a tap device on a Linux bridge that '
                 'exists; default %(default)s')
        parser.add_argument(
            '--config-file', metavar='FILE', action='append', default=[],
            dest='config_files', type=os.path.abspath,
            help='nova.conf to read (repeat for more); by default the files '
                 'that nova-compute reads, and where there are none, '
                 '[kvm_ext] virt_type = auto')
        base.add_connect(parser)
        parser.add_argument(
            '--set', metavar='GROUP.OPTION=VALUE', type=_setting,
            action='append', default=[], dest='settings',
            help='option of nova.conf, over the files, for example '
                 'kvm_ext.cpu_mode=maximum (repeat for more)')
        parser.add_argument(
            '--xml', action='store_true',
            help='print the guest XML and start nothing')
        parser.add_argument(
            '--keep', action='store_true',
            help='leave the guest running and say how to remove it')
        parser.add_argument(
            '--timeout', type=base.seconds, default=300, metavar='SECONDS',
            help='how long the guest may take to come up, default '
                 '%(default)s')
        parser.add_argument(
            '--expect', metavar='TEXT', default='login:', type=_text,
            help='text on the console that tells that an image is up, default '
                 '%(default)r; a guest agent that answers tells it too')
        parser.add_argument(
            '--cache-dir', metavar='DIR', default='/var/cache/nova-kvm-ext',
            help='where the test guest is kept, default %(default)s')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = int(ExitCode.UNKNOWN)
        self._started = time.monotonic()
        self._result: dict[str, Any] = {
            'result': None, 'error': None, 'config_files': [],
            'domain': None, 'checks': [], 'vulnerabilities': {},
            'steps': [], 'xml': None}
        return super().run(parsed_args) or self._code

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        if os.geteuid() != 0:
            self._code = ExitCode.HOST
            self._on_event({'event': 'error', 'text':
                            'guest boot needs root, for the taps, disks and '
                            'logs of a guest. Run it with sudo.'})
        else:
            try:
                found = configuration.find(parsed_args.config_files)
                base.say_files(found)
                found.take_environment()
                self._result['config_files'] = list(found.files)
                self._code = supervisor.boot(
                    self._options(parsed_args, found.files), self._on_event)
            except errors.InvalidOption as e:
                self._code = ExitCode.USAGE
                self._on_event({'event': 'error', 'text': str(e)})
            except errors.HostError as e:
                self._code = ExitCode.HOST
                self._on_event({'event': 'error', 'text': str(e)})
        return self.COLUMNS, self._summary()

    def produce_output(self, parsed_args: argparse.Namespace,
                       column_names: Sequence[str], data: Any) -> int:
        xml = self._result['xml']
        if xml is not None and parsed_args.formatter == 'table' and (
                not parsed_args.columns):
            print(xml)
            return 0
        return super().produce_output(parsed_args, column_names, data)

    @staticmethod
    def _options(args: argparse.Namespace, files: Sequence[str]) -> spec.Spec:
        settings = list(args.settings)
        if args.connect:
            settings.append(('libvirt', 'connection_uri', args.connect))
        if not files and not any(
                (group, name) in (('kvm_ext', 'virt_type'),
                                  ('libvirt', 'virt_type'))
                for group, name, _ in settings):
            settings.append(('kvm_ext', 'virt_type', 'auto'))
        return spec.Spec(
            config_files=list(files),
            settings=''.join(f'[{group}]\n{name} = {value}\n'
                             for group, name, value in settings),
            image=args.image, disk_format=args.disk_format,
            properties=dict(args.properties),
            extra_specs=dict(args.extra_specs),
            vcpus=args.vcpus, memory_mb=args.memory, bridge=args.nic,
            timeout=args.timeout, expect=args.expect,
            cache_dir=args.cache_dir, xml_only=args.xml, keep=args.keep)

    def _on_event(self, event: dict[str, Any]) -> None:
        """Keep what the summary needs, and say it as it happens."""
        kind = event.pop('event')
        if kind == 'step':
            self._result['steps'].append(event)
            self._say(f'{event["name"]:<8} {event["seconds"]:6.1f} s  '
                      f'{event["details"]}')
        elif kind == 'check':
            self._result['checks'].append(event)
            self._say(f'{event["result"]:<8} {event["name"]}: '
                      f'{event["details"]}')
        elif kind in ('domain', 'xml'):
            self._result[kind] = event if kind == 'domain' else event['text']
        elif kind == 'vulnerabilities':
            self._result[kind] = event['found']
        elif kind == 'error':
            self._result['error'] = event['text']
            self._say(f'ERROR    {event["text"]}')
        else:
            level = event.get('level', kind)
            self._say(f'{level.lower():<8} {event["text"]}')

    @staticmethod
    def _say(text: str) -> None:
        """Progress is no result: it goes to standard error."""
        print(text, file=sys.stderr, flush=True)

    def _summary(self) -> Sequence[Any]:
        found = self._result
        domain = found['domain'] or {}
        rows: dict[str, Any] = {
            'result': 'PASS' if self._code == ExitCode.PASS else 'FAIL',
            'exit_code': int(self._code),
            'seconds': round(time.monotonic() - self._started, 1)}
        rows |= {name: domain.get(name) for name in
                 ('virt_type', 'machine', 'cpu_mode', 'cpu_model')}
        rows |= {name: found[name] for name in self.ASIDE}
        return tuple(columns.as_json(rows[name]) for name in self.COLUMNS)
