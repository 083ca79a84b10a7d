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

"""The command behind tools/run-cloud-tests: cloud up, checks, cloud down.

It orders what the other modules do, and reports. Exit code 0: every check that
ran has passed; 1: one has failed; 2: there was no cloud to check, and why was
printed.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import subunit
import testtools

from nova_kvm_ext.tests.cloud import base
from nova_kvm_ext.tests.cloud import deploy
from nova_kvm_ext.tests.cloud import sandbox
from nova_kvm_ext.tests.cloud import storage

_TOP = pathlib.Path(__file__).parents[3]
_STATE = '/var/tmp/nova-kvm-ext-cloud'
# Checks that break or change a compute run alone, the others side by side:
# mostly guests boot, each on one CPU.
_ALONE = (r'\.(ColdSnapshot|Fleet|FrozenTimes|HostCPU|HostMigration|'
          r'HostRollback|IOPause|(Migration|Storage)?Fault|Soak|'
          r'Verdicts)TestCase\.')
_AT_ONCE = max(1, min(4, os.cpu_count() or 1))
# Where time is short.
_SHORT = r'\.(test_boot\.Boot|test_agent\.)'
# In the logs of OpenStack's services, and of libvirt.
_ERROR = re.compile(r' (ERROR|CRITICAL) |: error : ')
_LAST_ERRORS = 20
PREPARED = 'NOVA_KVM_EXT_CLOUD_PREPARED'
"""Environment variable: phases before this one, 'name=seconds;...'."""

# An expected failure is a fault of Nova's that is known.
_RESULTS = {'success': 'pass', 'skip': 'skip', 'fail': 'FAIL',
            'xfail': 'known', 'uxsuccess': 'FAIL', 'inprogress': 'FAIL'}


@dataclasses.dataclass(frozen=True)
class Phase:
    """A step of the run and what it took."""

    name: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Check:
    """A check's result: pass, FAIL, skip, or known.

    :ivar reason: of any but pass
    :ivar figures: what it measured, lines of text
    """

    name: str
    result: str
    seconds: float
    reason: str
    figures: str


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='tools/run-cloud-tests',
        description='Brings up a real OpenStack on this machine, in '
        'namespaces of its own, checks the driver in it, and ends it. Run '
        'again while one is up, it checks that one.')
    parser.add_argument(
        'checks', nargs='*', metavar='REGEX',
        help='only the checks whose names match one of these')
    parser.add_argument(
        '--short', action='store_true',
        help='one compute; boots, guest agent and snapshots only')
    parser.add_argument(
        '--computes', type=int, metavar='N',
        choices=range(1, len(sandbox.COMPUTES) + 1),
        help='how many computes a new cloud has (default: 2; 1 with --short)')
    parser.add_argument(
        '--storage', choices=storage.KINDS, default=storage.KINDS[0],
        help='what images and the disks of guests are: files, or in a Ceph '
        'that is brought up too (default: %(default)s). Volumes are of both '
        'kinds, but for --short, which has none')
    parser.add_argument(
        '--keep', action='store_true', help='leave the cloud up')
    parser.add_argument(
        '--down', action='store_true',
        help='end a cloud that is up, remove all of it, and do nothing else')
    parser.add_argument(
        '--exec', nargs=argparse.REMAINDER, metavar='COMMAND',
        help='run a command inside a cloud that is up, with its clouds.yaml '
        '(openstack server list)')
    parser.add_argument(
        '--state', default=_STATE, metavar='DIR',
        help='directory of the cloud (default: %(default)s)')
    parser.add_argument(
        '-f', '--format', choices=('table', 'json'), default='table',
        help='of the results on standard output')
    return parser.parse_args()


class Run:
    """One run of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._sandbox = sandbox.Sandbox(os.path.abspath(arguments.state))
        self._phases = [
            Phase(name, float(seconds)) for name, _, seconds in (
                part.partition('=')
                for part in os.environ.get(PREPARED, '').split(';') if part)]
        self._checks: list[Check] = []
        self._read: dict[pathlib.Path, int] = {}

    def __call__(self) -> int:
        """Do what the arguments ask for; returns the exit code."""
        if self._arguments.down:
            self._sandbox.end()
            self._sandbox.remove(logs=False)
            return 0
        if self._arguments.exec is not None:
            if not self._sandbox.up():
                raise sandbox.SandboxError(
                    f'No cloud is up in {self._sandbox.state}; bring one up '
                    f'with --keep.')
            return subprocess.run(self._inside(
                self._arguments.exec or ['bash'])).returncode
        made = not self._sandbox.up()
        try:
            if made:
                self._bring_up()
            else:
                self._say('A cloud is up already: checking that one')
            self._check()
            if self._arguments.keep and made:
                self._sandbox.stay()
        finally:
            if made and not self._arguments.keep:
                start = time.monotonic()
                self._sandbox.end()
                self._sandbox.remove(logs=True)
                self._phase('down', time.monotonic() - start)
        self._report()
        if any(check.result == 'FAIL' for check in self._checks):
            return 1
        if not any(check.result in ('pass', 'known')
                   for check in self._checks):
            raise sandbox.SandboxError('No check has run.')
        return 0

    def _bring_up(self) -> None:
        start = time.monotonic()
        self._sandbox.make()
        self._phase('namespaces', time.monotonic() - start)
        computes = self._arguments.computes or (
            1 if self._arguments.short else 2)
        with subprocess.Popen(
                self._inside([
                    sys.executable, '-m', 'nova_kvm_ext.tests.cloud.deploy',
                    str(self._sandbox.state), str(computes),
                    self._arguments.storage,
                    'no' if self._arguments.short else 'yes']),
                stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                event = json.loads(line)
                if 'error' in event:
                    raise sandbox.SandboxError(
                        f'{event["phase"]}: {event["error"]}\nThe logs are in '
                        f'{self._sandbox.state}/logs.')
                self._phase(event['phase'], event['seconds'])
        if process.returncode:
            raise sandbox.SandboxError(
                f'Bringing up the cloud failed with {process.returncode}; '
                f'the logs are in {self._sandbox.state}/logs.')

    def _check(self) -> None:
        wanted = '|'.join(self._arguments.checks) or (
            _SHORT if self._arguments.short else '')
        list(self._errors())
        for name, where, how in (
                ('checks side by side', '(?!.*{})',
                 f'--concurrency={_AT_ONCE}'),
                ('checks that run alone', '(?=.*{})', '--serial')):
            start = time.monotonic()
            before = len(self._checks)
            with subprocess.Popen(
                    self._inside([
                        sys.executable, '-m', 'stestr', '--test-path',
                        './nova_kvm_ext/tests/cloud', 'run', '--subunit', how,
                        f'^{where.format(_ALONE)}.*({wanted})']),
                    stdout=subprocess.PIPE) as process:
                result = testtools.StreamToDict(self._checked)
                result.startTestRun()
                subunit.ByteStreamToStreamResult(
                    process.stdout, non_subunit_name='output').run(result)
                result.stopTestRun()
            if len(self._checks) > before:
                self._phase(name, time.monotonic() - start)

    def _checked(self, test: Any) -> None:
        if test['status'] not in _RESULTS:
            return  # it only exists
        name = test['id'].removeprefix('nova_kvm_ext.tests.cloud.')
        first, last = test['timestamps']
        details = {key: detail.as_text()
                   for key, detail in test['details'].items()}
        reason = details.get('reason') or details.get('traceback') or (
            'It has not ended' if test['status'] == 'inprogress' else '')
        check = Check(name, _RESULTS[test['status']],
                      round(((last or first) - first).total_seconds(), 1),
                      reason.strip().splitlines()[-1] if reason else '',
                      details.get('figures', ''))
        self._checks.append(check)
        self._say(f'{check.result} {check.seconds:6.1f} s  {check.name}')
        errors = list(self._errors())
        if check.result == 'FAIL':
            for key, text in (*details.items(), *errors):
                self._say(f'--- {key}\n{text}')

    def _errors(self) -> Iterator[tuple[str, str]]:
        """What services have logged of errors since this was last asked."""
        for path in sorted(self._sandbox.state.glob('logs/**/*.log')):
            with open(path, 'rb') as log:
                log.seek(self._read.get(path, 0))
                lines = log.read().decode(errors='replace').splitlines()
                self._read[path] = log.tell()
            if found := [line for line in lines if _ERROR.search(line)]:
                yield path.name, '\n'.join(found[-_LAST_ERRORS:])

    def _inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs another inside, as a client of the cloud."""
        state = self._sandbox.state
        return self._sandbox.enter([
            'env', f'--chdir={_TOP}', f'OS_CLOUD={deploy.CLOUD}',
            f'OS_CLIENT_CONFIG_FILE={state}/etc/clouds.yaml',
            f'{base.STATE}={state}', f'TMPDIR={state}/tmp',
            'PYTHONDONTWRITEBYTECODE=1', 'PYTHONWARNINGS=ignore',
            f'PATH={sys.prefix}/bin:{os.environ["PATH"]}', *command])

    def _phase(self, name: str, seconds: float) -> None:
        self._phases.append(Phase(name, round(seconds, 1)))
        self._say(f'==> {name}: {seconds:.1f} s')

    def _say(self, text: str) -> None:
        # Standard output is for programs when they have asked for it.
        print(text, flush=True, file=(
            sys.stderr if self._arguments.format == 'json' else sys.stdout))

    def _report(self) -> None:
        total = round(sum(phase.seconds for phase in self._phases), 1)
        if self._arguments.format == 'json':
            json.dump({
                'phases': [dataclasses.asdict(one) for one in self._phases],
                'checks': [dataclasses.asdict(one) for one in self._checks],
                'seconds': total, 'load': os.getloadavg()},
                sys.stdout, indent=2)
            print()
            return
        for line in self._table(total):
            print(line)

    def _table(self, total: float) -> Iterator[str]:
        yield ''
        for phase in self._phases:
            yield f'{phase.seconds:8.1f} s  {phase.name}'
        yield (f'{total:8.1f} s  in all; load averages of the machine: '
               f'{" ".join(f"{load:.1f}" for load in os.getloadavg())}')
        yield ''
        for check in self._checks:
            yield f'{check.result:5} {check.seconds:7.1f} s  {check.name}'
            for line in (check.reason, *check.figures.splitlines()):
                if line:
                    yield f'{"":16}{line[:200]}'
        count = {result: sum(check.result == result for check in self._checks)
                 for result in ('pass', 'FAIL', 'known', 'skip')}
        yield ''
        yield ', '.join(f'{number} {result}'
                        for result, number in count.items())


def main() -> int:
    """Returns the exit code."""
    # So that what is being done is undone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    try:
        return Run(_arguments())()
    except sandbox.SandboxError as e:
        print(e, file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
