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
"""What ``tools/run-libvirt-matrix`` runs, and the tables that it prints."""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
import signal
import sys
import time

from nova_kvm_ext.tests.libvirt_matrix import documents
from nova_kvm_ext.tests.libvirt_matrix import live
from nova_kvm_ext.tests.libvirt_matrix import report
from nova_kvm_ext.tests.libvirt_matrix import sources


def say(text: str) -> None:
    """Progress, for people."""
    print(f'[{time.strftime("%H:%M:%S")}] {text}', file=sys.stderr,
          flush=True)


def read_sources(given: Sequence[str], releases: Sequence[str],
                 state: pathlib.Path
                 ) -> tuple[list[report.Bed], dict[str, str]]:
    """The beds of libvirt's own documents, and the CPUs that are in them.

    :param given: directories with a source; none to fetch those of releases
    """
    beds = []
    texts: dict[str, str] = {}
    for suite in given or releases:
        bed = report.Bed(f'source of {suite}')
        beds.append(bed)
        try:
            if given:
                path = pathlib.Path(suite)
            else:
                say(f'libvirt\'s source package of {suite}')
                path = sources.fetch(suite, state / 'sources')
            source = documents.Source(path)
        except (sources.Unavailable, OSError) as e:
            bed.missing.append(str(e))
            say(f'  not there: {e}')
            continue
        bed.name = f'libvirt {source.version}, its source'
        say(f'documents of libvirt {source.version}')
        bed.documents = source.documents
        bed.judged.extend(source.judge())
        texts |= {f'{source.version} {name}': xml
                  for name, xml in source.cpus()}
    return beds, texts


def ask_libvirts(releases: Sequence[str], texts: Mapping[str, str],
                 state: pathlib.Path, again: bool) -> list[report.Bed]:
    """The beds of real libvirts.

    :param texts: XML of CPUs by name, for each libvirt to compare
    :param again: whether to judge what an earlier run has kept
    """
    kept = state / 'captured'
    failed = {} if again else live.capture(releases, texts, kept, say)
    found = live.read(kept, releases)
    return live.judge(found) + [
        report.Bed(f'libvirt of {release}',
                   missing=[failed.get(release, 'nothing was kept of it')])
        for release in releases if release not in found]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='tools/run-libvirt-matrix', description=__doc__)
    parser.add_argument(
        '--only', choices=('sources', 'live'),
        help='the documents of libvirt\'s source packages, or the libvirt of '
             'each Debian in a root (default: both)')
    parser.add_argument(
        '--release', action='append', choices=live.RELEASES, default=[],
        help='that Debian alone; repeat for more (default: all)')
    parser.add_argument(
        '--again', action='store_true',
        help='start no guest: judge what the last run has kept')
    parser.add_argument(
        '--fixtures', metavar='DIRECTORY', type=pathlib.Path,
        help='write what was kept for the unit tests, which judge it again: '
             'nova_kvm_ext/tests/data')
    parser.add_argument(
        '--source', metavar='DIRECTORY', action='append', default=[],
        help='an unpacked source of libvirt (libvirt-11.3.0) instead of those '
             'of Debian\'s archive; repeat for more')
    parser.add_argument(
        '--state', metavar='DIRECTORY', type=pathlib.Path,
        help='where sources and answers are kept (default: '
             'libvirt-matrix in ~/.cache/nova-kvm-ext)')
    parser.add_argument(
        '-f', '--format', choices=('table', 'json'), default='table',
        help='output for people or for programs')
    return parser


def _cache() -> pathlib.Path:
    cache = os.environ.get('NOVA_KVM_EXT_CACHE') or os.path.join(
        os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'),
        'nova-kvm-ext')
    return pathlib.Path(cache) / 'libvirt-matrix'


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    given = args.source or [
        part for part in os.environ.get(
            'NOVA_KVM_EXT_LIBVIRT_SOURCE', '').split(':') if part]
    state = (args.state or _cache()).absolute()
    releases = args.release or list(live.RELEASES)
    beds: list[report.Bed] = []
    texts: dict[str, str] = {}
    if args.only != 'live' or not args.again:
        documented, texts = read_sources(given, releases, state)
        if args.only != 'live':
            beds += documented
    if args.only != 'sources':
        beds += ask_libvirts(releases, texts, state, args.again)
    if args.fixtures:
        for captured in live.read(state / 'captured', releases).values():
            libvirt, qemu = (
                live.version(captured['own'][name]).rpartition('.')[0]
                for name in ('libvirt', 'qemu'))
            path = args.fixtures / (f'cpu-answers-libvirt-{libvirt}-qemu-'
                                    f'{qemu}.json.xz')
            path.write_bytes(live.as_fixture(captured))
            say(f'written: {path}')
    if args.format == 'json':
        print(json.dumps(report.for_programs(beds), indent=1))
    else:
        print(report.table(beds))
        print(report.details(beds))
    return report.exit_code(beds)


if __name__ == '__main__':
    # Nothing of a root may outlive a run that is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
