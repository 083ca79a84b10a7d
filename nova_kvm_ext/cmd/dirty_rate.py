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


"""``nova-kvm-ext guest dirty-rate``: predict a live migration of a guest.

Parses, has :mod:`nova_kvm_ext.migration.dirty_rate` measure and
:mod:`nova_kvm_ext.migration.forecast` judge, prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys
from typing import Any

from cliff import show

from nova_kvm_ext.cmd import agent
from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    from nova_kvm_ext.guests import pauses
    from nova_kvm_ext.migration import dirty_rate
    from nova_kvm_ext.migration import forecast
    from nova_kvm_ext.migration import verdict

_MIB = 1024 * 1024
_SHORT = 1
"""Seconds of the second look, the shortest that libvirt allows."""

# Of the table's rows; -f json has numbers.
_UNITS = {'dirty_rate': 'MiB/s', 'dirty_rate_short': 'MiB/s',
          'bandwidth': 'MiB/s', 'bandwidth_needed': 'MiB/s',
          'memory': 'MiB', 'left': 'MiB', 'seconds': 's',
          'first_iteration': 's', 'downtime': 's', 'downtime_allowed': 's'}


def _seconds(text: str) -> int:
    found = base.positive(text)
    if not 2 <= found <= 60:
        raise argparse.ArgumentTypeError(f'{text} s is not 2 to 60')
    return found


def _shown(value: float | None, unit: str) -> columns.Shown:
    """A number, with its unit for people."""
    return columns.Shown(
        value, 'not known' if value is None else f'{value:g} {unit}')


class DirtyRate(base.HostCommand, show.ShowOne):
    """Measure how much memory a guest changes.

    Use this command before a live migration. libvirt lets QEMU measure the
    running guest twice: for --seconds, and for one second. Memory that changes
    twice in a measurement counts once, so a longer measurement shows a lower
    rate. From both rates the command calculates what a live migration with the
    bandwidth and the downtime of nova.conf would be like, if the guest
    continues to change its memory as it does now. QEMU compares samples of the
    memory: it does not see that the same content was written again. The guest
    keeps running.

    Exit codes: 0 a live migration would converge, 2 it would not, 3 not known,
    wrong command line or configuration, or libvirt cannot be reached or fails.
    """

    COLUMNS = ('name', 'uuid', 'seconds', 'dirty_rate',
               'dirty_rate_short', 'memory', 'bandwidth', 'first_iteration',
               'left', 'downtime', 'downtime_allowed', 'bandwidth_needed',
               'verdict', 'details')

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'domain', metavar='DOMAIN',
            help='name in libvirt, or UUID, which is the instance\'s')
        parser.add_argument(
            '--seconds', type=_seconds, default=10, metavar='N',
            help='how long to measure, 2 to 60, default %(default)s')
        parser.add_argument(
            '--bandwidth', type=base.positive, metavar='MIB',
            help='bandwidth of the network, MiB/s; by default [libvirt] '
                 'live_migration_bandwidth')
        parser.add_argument(
            '--downtime', type=base.positive, metavar='MS',
            help='the downtime that is allowed, milliseconds; by default '
                 '[libvirt] live_migration_downtime')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = ExitCode.UNKNOWN
        return super().run(parsed_args) or int(self._code)

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        nova = base.read_conf(parsed_args.config_files)
        bandwidth = (parsed_args.bandwidth or
                     nova.libvirt.live_migration_bandwidth) * _MIB
        allowed = (parsed_args.downtime or
                   nova.libvirt.live_migration_downtime) / 1000
        with self.connected(parsed_args, nova) as connection:
            domain = agent.find(connection, parsed_args.domain)
            looks = []
            for seconds in (parsed_args.seconds, _SHORT):
                print(f'looking at {domain.name()} for {seconds} s',
                      file=sys.stderr)
                looks.append(dirty_rate.measure(
                    connection, domain, seconds))
            # virDomainInfo: state, most memory and memory in KiB.
            state, memory = domain.info()[0], domain.info()[1] * 1024
            found = forecast.forecast(
                looks[0], looks[1], memory, bandwidth, allowed,
                paused=state == pauses.PAUSED)
            name, uuid = domain.name(), domain.UUIDString()
        self._code = {
            verdict.Outcome.CONVERGES: ExitCode.PASS,
            verdict.Outcome.STALLS: ExitCode.FAIL,
            verdict.Outcome.UNKNOWN: ExitCode.UNKNOWN}[found.outcome]
        rows: dict[str, Any] = {
            'name': name, 'uuid': uuid,
            'seconds': parsed_args.seconds,
            'dirty_rate': _mib(looks[0].rate),
            'dirty_rate_short': _mib(looks[1].rate), 'memory': _mib(memory),
            'bandwidth': _mib(bandwidth) if bandwidth else None,
            'first_iteration': _rounded(found.first),
            'left': _mib(found.left), 'downtime': _rounded(found.downtime),
            'downtime_allowed': allowed,
            'bandwidth_needed': _mib(found.needed),
            'verdict': found.outcome.value, 'details': found.why}
        return self.COLUMNS, tuple(
            _shown(rows[column], _UNITS[column]) if column in _UNITS else
            rows[column] for column in self.COLUMNS)


def _mib(value: float | None) -> float | None:
    return None if value is None else round(value / _MIB, 1)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
