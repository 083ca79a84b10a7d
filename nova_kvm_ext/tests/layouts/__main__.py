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
"""What ``tools/run-layout-tests`` runs, and the table that it prints."""

import argparse
from collections.abc import Sequence
import json
import pathlib
import signal
import subprocess
import sys
import time

from nova_kvm_ext.tests.layouts import cases
from nova_kvm_ext.tests.layouts import report
from nova_kvm_ext.tests.layouts import system
from nova_kvm_ext.tests import roots

_SOURCES = pathlib.Path(__file__).parents[3]


def say(text: str) -> None:
    """Progress, for people."""
    print(f'[{time.strftime("%H:%M:%S")}] {text}', file=sys.stderr,
          flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='tools/run-layout-tests', description='Start nova-compute with '
        'KVMDriver, run host check and boot a guest on each layout of hosts, '
        'in roots of this machine.',
        epilog='Exit code: 0 all is as it should be, 1 something is not, 2 a '
        'layout could not be tried.')
    parser.add_argument(
        'only', nargs='*', metavar='LAYOUT',
        help=f'those alone: {", ".join(cases.ALL)} (default: all)')
    parser.add_argument(
        '--wheel', required=True, metavar='DIRECTORY', type=pathlib.Path,
        help='where the wheel of this package is')
    parser.add_argument(
        '-f', '--format', choices=('table', 'json'), default='table',
        help='output for people or for programs')
    return parser


def run(context: cases.Context, name: str) -> list[report.Layout]:
    """Try the layouts of one set of roots."""
    found: list[report.Layout] = []
    try:
        for layout in cases.ALL[name](context):
            found.append(layout)
    except (roots.RootError, system.Wrong, OSError,
            subprocess.SubprocessError) as e:
        say(f'{name}: {e}')
        found.append(report.Layout(f'{name}: the rest', missing=str(e)))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    unknown = set(args.only) - set(cases.ALL)
    if unknown:
        parser.error(f'no layout: {", ".join(sorted(unknown))}')
    layouts: list[report.Layout] = []
    context = cases.Context(
        _SOURCES, args.wheel.absolute(), roots.cache_directory(), say)
    for name in args.only or cases.ALL:
        layouts += run(context, name)
    if args.format == 'json':
        print(json.dumps(report.for_programs(layouts), indent=1))
    else:
        print(report.table(layouts))
    return report.exit_code(layouts)


if __name__ == '__main__':
    # Nothing of a root may outlive a run that is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
