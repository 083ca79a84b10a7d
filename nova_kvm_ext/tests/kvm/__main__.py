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


"""Runs the tests in machines with KVM, and says what they say.

Usage: python -m nova_kvm_ext.tests.kvm CACHE built|build|main|migration
[REGEX]
"""

import argparse
from collections.abc import Sequence
import contextlib
import fcntl
import os
import pathlib
import re
import resource
import signal
import sys
import time

from nova_kvm_ext.boot import testguest
from nova_kvm_ext.tests.kvm import disks
from nova_kvm_ext.tests.kvm.machine import Kind
from nova_kvm_ext.tests.kvm.machine import Machine
from nova_kvm_ext.tests import roots

# What a run may take. One that hangs must not hold up a gate for ever.
_DEADLINE = 45 * 60


def _as_row(machine: str, event: dict[str, object]) -> str:
    return (f'{machine}: {event["status"]:<8} {event["seconds"]:6.1f} s  '
            f'{str(event["id"]).removeprefix("nova_kvm_ext.tests.kvm.")}')


def _watch(machines: Sequence[Machine]) -> list[dict[str, object]]:
    """Say what machines say until all have ended; returns the fault table."""
    faults = []
    started = time.monotonic()
    over = False
    while not over:
        time.sleep(0.5)
        # Once more after the end, for what was said last.
        over = all([machine.ended() for machine in machines])
        if time.monotonic() - started > _DEADLINE:
            disks.say(f'Not done after {_DEADLINE / 60:.0f} minutes: given up')
            over = True
        for machine in machines:
            for event in machine.news():
                if event['event'] == 'fault':
                    faults.append(event)
                elif event['event'] == 'test':
                    print(_as_row(machine.name, event), flush=True)
                else:
                    print(f'{machine.name}: {event["text"]}', flush=True)
    return faults


def run(machines: Sequence[Machine], parts: disks.Disks,
        output: pathlib.Path) -> bool:
    """Run machines side by side until all have switched themselves off.

    :param output: directory for what they say
    :returns: whether all tests of all machines passed
    :raises disks.MachineError: one of them cannot run
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        # Machines of the same kind have the same state.
        lacking = {}
        for machine in machines:
            stack.callback(machine.stop)
            _, memory = machine.state(parts)
            if not memory.exists():
                lacking[memory] = machine
        for machine in lacking.values():
            machine.boot(parts)
        for machine in lacking.values():
            machine.keep_state(parts)
        disks.say(f'Running {", ".join(m.name for m in machines)} '
                  f'({time.monotonic() - started:.0f} s)')
        for machine in machines:
            machine.start(parts)
        faults = _watch(machines)
    with open(output / 'subunit', 'wb') as f:
        for machine in machines:
            f.write(machine.path('results').read_bytes())
    if faults:
        _print_faults(faults)
    codes = [machine.exit_code() for machine in machines]
    for machine, code in zip(machines, codes, strict=True):
        if code is None:
            disks.say(
                f'{machine.name} did not come to its end. Its last words:')
            print(machine.last_words(), flush=True)
    passed = set(codes) == {0}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    disks.say(f'{"Passed" if passed else "Failed"} after '
              f'{time.monotonic() - started:.0f} s, with '
              f'{used.ru_utime + used.ru_stime:.0f} s of CPU')
    return passed


def _print_faults(faults: Sequence[dict[str, object]]) -> None:
    """The states of a host: what we, libvirt and its validator say."""
    disks.say('Fault states')
    for fault in faults:
        print(f'{fault["state"]}\n'
              f'  host check           {fault["check"]}\n'
              f'  remedy               {fault["remedy"]}\n'
              f'  after --fix          {fault["fixed"]}\n'
              f'  libvirt              {fault["libvirt"]}\n'
              f'  virt-host-validate   {fault["validate"]}', flush=True)


_HOST = Kind('kvm-host', 'EPYC-Rome,+svm')
_NO_SVM = Kind('no-svm', 'EPYC-Rome,-svm', 1024)
_DESTINATION = Kind('destination', 'Opteron_G3,+svm',
                    network='stream,server=on')
_SOURCE = Kind('source', 'EPYC-Rome,+svm', network='stream,server=off')


_RUNS: dict[str, tuple[tuple[str, Kind, tuple[str, ...]], ...]] = {
    'main': (('guests', _HOST, ('test_guests',)),
             ('faults', _HOST, ('test_faults', 'test_driver')),
             ('no-svm', _NO_SVM, ('test_no_svm',))),
    # The first has no tests: it serves those of the other.
    'migration': (('destination', _DESTINATION, ()),
                  ('source', _SOURCE, ('test_migration',)))}


def _machines(what: str, pattern: re.Pattern[str],
              output: pathlib.Path) -> list[Machine]:
    """The machines of a run, which are side by side.

    :param what: key of _RUNS
    :raises disks.MachineError: no test has that in its name
    """
    package = 'nova_kvm_ext.tests.kvm'
    found = [test for test in disks.run([
        sys.executable, '-W', 'ignore', '-m', 'testtools.run', '--list',
        *(f'{package}.{module}' for _, _, modules in _RUNS[what]
          for module in modules)]).split() if pattern.search(test)]
    if not found:
        raise disks.MachineError(f'No test has {pattern.pattern} in its name.')
    machines = []
    for name, kind, modules in _RUNS[what]:
        starts = tuple(f'{package}.{module}.' for module in modules)
        tests = [test for test in found if test.startswith(starts)]
        if tests or not modules:
            machines.append(Machine(name, kind, {'tests': tests}, output))
    return machines


def _main(arguments: argparse.Namespace) -> int:
    arguments.cache = arguments.cache.resolve()
    with open(arguments.cache / '.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            disks.say(f'Waiting for another run that uses {arguments.cache}')
            fcntl.flock(lock, fcntl.LOCK_EX)
        return _locked(arguments)


def _locked(arguments: argparse.Namespace) -> int:
    parts = disks.Disks.find(arguments.cache)
    if arguments.action == 'built':
        return 0 if parts.there() else 1
    if arguments.action == 'build':
        disks.build(parts)
        return 0
    if not parts.there():
        raise disks.MachineError(f'There is no machine in '
                                 f'{arguments.cache}: build it first.')
    parts.touch()
    disks.tidy(arguments.cache)
    output = arguments.cache / 'last-run'
    output.mkdir(exist_ok=True)
    for old in output.iterdir():
        old.unlink()
    machines = _machines(arguments.action, arguments.pattern, output)
    return 0 if run(machines, parts, output) else 1


def main() -> int:
    """Exit code: 0 done and passed, 1 not so, 2 it could not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('cache', type=pathlib.Path)
    parser.add_argument('action', choices=('built', 'build', *_RUNS))
    parser.add_argument('pattern', nargs='?', default='',
                        type=re.compile)
    # So that what is started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _main(parser.parse_args())
    except (disks.MachineError, roots.RootError, testguest.BuildError, OSError,
            re.error) as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # As it ends a process, so that the shell script ends too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise


if __name__ == '__main__':
    sys.exit(main())
