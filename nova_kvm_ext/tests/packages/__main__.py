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
"""What ``tools/run-package-tests`` runs, and the table that it prints."""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from nova_kvm_ext.tests.layouts import report
from nova_kvm_ext.tests.layouts import system
from nova_kvm_ext.tests import namespaces
from nova_kvm_ext.tests.packages import cases
from nova_kvm_ext.tests import roots

_SOURCES = pathlib.Path(__file__).parents[3]


def say(text: str) -> None:
    """Progress, for people."""
    print(f'[{time.strftime("%H:%M:%S")}] {text}', file=sys.stderr,
          flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='tools/run-package-tests', description='Install, upgrade and '
        'remove the Debian packages in roots of Debian 13, with nova-compute '
        'and a guest.',
        epilog='Exit code: 0 all is as it should be, 1 something is not, 2 '
        'something could not be tried.')
    parser.add_argument(
        'only', nargs='*', metavar='CASE',
        help=f'those alone: {", ".join(cases.ALL)} (default: all)')
    parser.add_argument(
        '--packages', required=True, nargs=2, type=pathlib.Path,
        metavar='DIRECTORY', help='those of tools/build-deb, of one version '
        'and of a higher one')
    parser.add_argument(
        '-f', '--format', choices=('table', 'json'), default='table',
        help='output for people or for programs')
    return parser


def table(rows: Sequence[cases.Row]) -> str:
    """For people, at 80 columns."""
    lines = []
    for row in rows:
        lines.append(f'{row.case:<33}{row.name:<16}{row.step.result:<5}'
                     f'{row.step.seconds:5.0f} s')
    for row in rows:
        lines += ['', f'{row.case}, {row.name}',
                  *report.wrapped(row.step.said)]
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    unknown = set(args.only) - set(cases.ALL)
    if unknown:
        parser.error(f'no case: {", ".join(sorted(unknown))}')
    rows: list[cases.Row] = []
    missing = False
    with tempfile.TemporaryDirectory(
            prefix='nova-kvm-ext-packages-', dir=namespaces.BASE) as work:
        # apt reads packages as a user of its own.
        directory = pathlib.Path(work)
        directory.chmod(0o755)
        first, second = args.packages
        cases.lay_out(first, second, directory)
        for name in args.only or cases.ALL:
            try:
                for row in cases.ALL[name](_SOURCES, directory, say):
                    rows.append(row)
            except (roots.RootError, system.Wrong, OSError,
                    subprocess.SubprocessError) as e:
                say(f'{name}: {e}')
                missing = True
    if args.format == 'json':
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print(table(rows))
    if any(row.step.result == report.NO for row in rows):
        return 1
    return 2 if missing or not rows else 0


if __name__ == '__main__':
    # Nothing of a root may outlive a run that is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
