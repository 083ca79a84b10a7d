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


"""``nova-kvm-ext host ...``: whether guests can run on this host.

Parses, has :mod:`nova_kvm_ext.host.facts` read and
:mod:`nova_kvm_ext.host.checks` judge, prints. With ``--fix`` it runs the
commands that the checks mark as safe.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
import threading
from typing import Any

from cliff import lister

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import findings
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext.cmd import quick
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    from nova_kvm_ext.host.checks import runner
    from nova_kvm_ext.host.checks import verdict
    from nova_kvm_ext.host import configuration
    from nova_kvm_ext.host import facts
    from nova_kvm_ext.host import install_facts
    from nova_kvm_ext.host import model
    from nova_kvm_ext.host import nova_python
    from nova_kvm_ext.host import options

CACHE_DIR = '/var/cache/nova-kvm-ext'
"""Where the probe guest's answer is kept without a nova.conf."""

_FIX_SECONDS = 60


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 3600:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a number of seconds from 1 to 3600')
    return int(text)


class Check(base.HostCommand, lister.Lister):
    """Check whether KVM guests can run on this host.

    The command checks CPU, kernel modules, /dev/kvm, vhost-net, QEMU, libvirt,
    Nova, nova.conf and, if disks are in Ceph, Ceph, and starts a tiny guest.
    Each check has a code, the facts and the remedy. Only root can try what
    QEMU's user may do.

    With --fix the safe remedies are applied: modules are loaded, and /dev/kvm
    is given to the right group. Each command is shown before it runs. Then
    everything is checked again.

    Failures and warnings are shown first, each with its remedy. For the other
    checks only their number is shown, or with --all each of them.

    Exit codes: 0 every check passed, 1 there are warnings, 2 there are
    failures, 3 not checked: the command line or a file is wrong, or --fix was
    used without root.
    """

    COLUMNS = ('code', 'title', 'result', 'details', 'remedy', 'fix')
    ASIDE = ('remedy', 'fix')

    @property
    def formatter_default(self) -> str:
        return findings.NAME

    def _load_formatter_plugins(self) -> Any:
        return findings.added_to(super()._load_formatter_plugins())

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--all', action='store_true',
            help='show also what the checks found that passed or were left '
                 'out')
        parser.add_argument(
            '--fix', action='store_true',
            help='run the safe remedies, then check again; needs root')
        parser.add_argument(
            '--timeout', type=_seconds, default=120, metavar='SECONDS',
            help='how long libvirt may take to answer, the guest included, '
                 'default %(default)s')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        if parsed_args.formatter == findings.NAME and parsed_args.columns:
            parsed_args.formatter = 'table'
        self._code = ExitCode.PASS
        return super().run(parsed_args) or int(self._code)

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Any]:
        if parsed_args.fix and os.geteuid() != 0:
            raise errors.HostError('--fix needs root.', 'Run it with sudo.')
        results = self._check(parsed_args)
        tried: set[str] = set()
        while parsed_args.fix:
            # One remedy can bring to light what the next check could not
            # see, as a module that is loaded does with /dev/kvm.
            todo = [command for result in results
                    if result.result in (verdict.WARN, verdict.FAIL)
                    for command in result.fix if command not in tried]
            if not todo:
                break
            tried.update(todo)
            for command in dict.fromkeys(todo):
                self._run_fix(command)
            results = self._check(parsed_args)
        self._code = ExitCode[verdict.worst(results)]
        return self.COLUMNS, [
            [list(value) if isinstance(value := getattr(result, column),
                                       tuple) else value
             for column in self.COLUMNS] for result in results]

    def _check(self, args: argparse.Namespace) -> list[verdict.CheckResult]:
        read = configuration.find(args.config_files)
        nova = base.load(read)
        wanted = options.HostOptions.from_conf(nova, read.how)
        install = install_facts.read(read.service)
        python = nova_python.find(read.service)
        uri = self.uri(args, nova)
        cache_dir = CACHE_DIR
        if wanted.files and os.path.isdir(wanted.state_path):
            cache_dir = wanted.state_path
        elif os.geteuid() == 0:
            with contextlib.suppress(OSError):
                os.makedirs(CACHE_DIR, exist_ok=True)
        found: list[model.HostFacts | BaseException] = []
        answered = threading.Event()

        def look() -> None:
            try:
                with contextlib.ExitStack() as stack:
                    found.append(facts.read_host(
                        wanted, uri, lambda: stack.enter_context(
                            self.connected(args, nova)),
                        cache_dir=cache_dir, install=install,
                        python=python))
            except BaseException as e:
                found.append(e)  # for the thread that waits
            answered.set()

        # A call of libvirt cannot be interrupted. A thread can be left alone,
        # and ends with this process. It is not joined: where eventlet has
        # patched the threads of Python 3.13, join() with a limit raises
        # eventlet's Timeout, a BaseException, at the limit.
        threading.Thread(target=look, daemon=True).start()
        answered.wait(args.timeout)
        if not found:
            host = facts.read_host(wanted, uri, install=install,
                                   python=python)
            host = dataclasses.replace(
                host, libvirt=dataclasses.replace(
                    host.libvirt, hangs=True, unasked='',
                    error=f'no answer within {args.timeout} s'))
        elif isinstance(found[0], BaseException):
            raise found[0]
        else:
            host = found[0]
        return runner.run(host)

    def _run_fix(self, command: str) -> None:
        self._say(f'+ {command}')
        try:
            done = subprocess.run(
                shlex.split(command), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, errors='replace',
                timeout=_FIX_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as e:
            self._say(f'  failed: {errors.clean(e)}')
            return
        if done.returncode != 0:
            self._say(f'  failed with exit code {done.returncode}: '
                      f'{errors.clean(done.stderr or done.stdout)}')

    @staticmethod
    def _say(text: str) -> None:
        """Progress is no result: it goes to standard error."""
        print(text, file=sys.stderr, flush=True)


class Health(base.ConfigCommand):
    """Show whether nova-compute of this host works.

    For probes of containers, systemd and monitoring systems. The command reads
    the file that nova-compute writes at each periodic update and at each
    change, and asks the kernel whether the process runs. It never asks
    libvirt, so a libvirt that hangs does not delay it. It takes 50 ms.

    One line for each part, the worst result first: nova-compute itself,
    libvirt, Placement, the host check.

    Without --state-path the file is searched below /var/lib/nova, and then
    below the [DEFAULT] state_path of the configuration that nova-compute
    reads, which takes a second.

    Exit codes: 0 no problem, 1 there are warnings, 2 there is a failure, 3 not
    known: no state file, or the command line is wrong.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--alive', action='store_true',
            help='judge only nova-compute itself: for a probe that restarts '
                 'nova-compute, because a restart repairs neither libvirt nor '
                 'the host')
        parser.add_argument(
            '--state-path', metavar='DIRECTORY',
            help=f'[DEFAULT] state_path of nova-compute, default '
                 f'{quick.STATE_PATH}')
        parser.add_argument(
            '--host', metavar='NAME',
            help='[DEFAULT] host of nova-compute, where several share that '
                 'directory')
        parser.add_argument(
            '-f', '--format', choices=quick.FORMATS, default=quick.FORMATS[0],
            help='the output format, default %(default)s')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        state_path = parsed_args.state_path
        if state_path is None:
            state_path = base.read_conf(parsed_args.config_files).state_path
        code = quick.health(state_path, parsed_args.host, parsed_args.alive,
                            parsed_args.format)
        assert code is not None
        return code
