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

"""``nova-kvm-ext metrics``: the metrics of this host for Prometheus.

Parses, has other modules read, prints or writes a file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import metadata
import sys
import threading
import time
from typing import Any

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    from nova_kvm_ext.guests import survey
    from nova_kvm_ext.health import probe
    from nova_kvm_ext.metrics import counted
    from nova_kvm_ext.metrics import names
    from nova_kvm_ext.metrics import samples
    from nova_kvm_ext.metrics import text

_SECONDS = 10
"""How long libvirt may take. It waits for no guest, so that more than one
second says that libvirt itself hangs."""


class Metrics(base.HostCommand):
    """Print this host's metrics in Prometheus' text format.

    About running guests: state, reason of a pause, whether QEMU hangs, agent
    channel, frozen, QEMU and machine type outdated, CPU drift, vhost-net asked
    and got. About nova-compute, what it has recorded and counted: host check,
    health, snapshots, migrations, images, log messages. The documentation has
    a reference of all metrics.

    With --textfile the text is written to a file for the textfile collector of
    node_exporter. The file is replaced as a whole, and all users can read it.

    The command sends nothing to guests, so a guest that hangs delays nothing;
    a metric reports it. If libvirt does not answer, nova_kvm_ext_libvirt_up is
    0 and the other metrics are printed.

    Exit codes: 0 printed, or written; 3 wrong command line or configuration,
    or the file cannot be written.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--textfile', metavar='PATH',
            help='write to this file, whose name must end in .prom')
        parser.add_argument(
            '--timeout', type=base.seconds, default=_SECONDS,
            metavar='SECONDS',
            help='how long libvirt may take to answer, default %(default)s')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        path = parsed_args.textfile
        if path is not None and not path.endswith('.prom'):
            raise errors.InvalidRequest(
                f'--textfile {errors.clean(path)}: node_exporter takes only '
                f'files whose name ends in .prom.',
                'Give it such a name.')
        nova = base.read_few(parsed_args.config_files)
        began = time.monotonic()
        found = [*self._guests(parsed_args, nova), *self._service(nova)]
        found.append(samples.Sample(
            names.COLLECTION, (), round(time.monotonic() - began, 3)))
        rendered = text.render(found, counted.read(counted.path(
            str(nova.state_path), str(nova.host))))
        if path is None:
            sys.stdout.write(rendered.decode())
            return int(ExitCode.PASS)
        try:
            text.write(path, rendered)
        except OSError as e:
            raise errors.HostError(
                f'--textfile {errors.clean(path)} cannot be written: '
                f'{e.strerror}.', 'Make its directory, and run this command '
                'as a user who may write there.') from e
        return int(ExitCode.PASS)

    def _guests(self, args: argparse.Namespace, nova: Any
                ) -> Iterator[samples.Sample]:
        seen = self._look(args, nova)
        yield samples.Sample(names.LIBVIRT_UP, (), int(seen is not None))
        version = metadata.version('nova-kvm-ext')
        if seen is None:
            yield samples.Sample(names.BUILD_INFO, (version, '', ''), 1)
            return
        if seen.problem:
            print(f'warning: what CPUs guests get today is not known: '
                  f'{seen.problem}', file=sys.stderr)
        yield samples.Sample(names.BUILD_INFO, (
            version, seen.libvirt or '', seen.today.qemu or ''), 1)
        yield from samples.of_guests(seen.verdicts, time.time())

    @staticmethod
    def _service(nova: Any) -> Iterator[samples.Sample]:
        """What nova-compute recorded, where there is such a service."""
        try:
            state = probe.read(str(nova.state_path), str(nova.host))
        except probe.NoFile:
            return
        except probe.NotKnown as e:
            print(f'warning: {e}', file=sys.stderr)
            return
        yield from samples.of_health(
            (part.name, part.result) for part in probe.judge_here(state))
        checked = state['host_check']
        if checked['results']:
            yield from samples.of_checks(
                checked['results'], None if checked['at'] is None else
                probe.unix(state, checked['at']))

    def _look(self, args: argparse.Namespace, nova: Any
              ) -> survey.Survey | None:
        """All guests; None, and why on standard error, without libvirt."""
        found: list[survey.Survey | BaseException] = []
        answered = threading.Event()

        def look() -> None:
            try:
                with self.connected(args, nova) as connection:
                    found.append(survey.look(
                        connection, nova, self.uri(args, nova)))
            except BaseException as e:
                found.append(e)  # for the thread that waits
            answered.set()

        # As in host check: a call of libvirt cannot be interrupted, but left
        # alone.
        threading.Thread(target=look, daemon=True).start()
        text.render  # imported while libvirt works
        answered.wait(args.timeout)
        if not found:
            said = f'libvirt does not answer within {args.timeout} s'
        elif isinstance(found[0], survey.Survey):
            return found[0]
        elif isinstance(found[0], errors.HostError) or hasattr(
                found[0], 'get_error_code'):
            said = str(found[0]) if isinstance(
                found[0], errors.HostError) else (
                errors.with_explanation(found[0]))
        else:
            raise found[0]
        print(f'warning: {said}', file=sys.stderr)
        return None
