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


"""What the tests on a real KVM host have in common.

They use the host's own libvirt, and where they run Nova, they do it in a
forked process: Nova has been imported by then, which takes a minute in the
machine, and its configuration, threads and connections end with the process.
"""

# First of all, as in boot/worker.py.
import nova.cmd.compute  # noqa: F401

from collections.abc import Callable
import contextlib
import functools
import inspect
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from typing import Any
from unittest import mock

import libvirt
from oslotest import base
from testtools import content

from nova_kvm_ext.boot import supervisor
from nova_kvm_ext.boot import worker
from nova_kvm_ext.cmd import main

URI = 'qemu:///system'

IMAGE: tuple[str, ...] = ()
"""Arguments of ``guest boot`` for the test guest."""

_IS_MACHINE = '/etc/nova-kvm-ext-machine'
_FORK = multiprocessing.get_context('fork')
# Ten times what anything here has taken: the machine's host may be busy.
_TIMEOUT = 900


_TEST_GUEST = os.path.join(sys.prefix, 'testguest.raw')
if os.path.exists(_TEST_GUEST):
    IMAGE = ('--image', _TEST_GUEST)


@functools.cache
def port(name: str) -> Any:
    """The machine's port by which its file of that name is written.

    Only one process may open it, so forked ones inherit it.
    """
    return open(f'/dev/virtio-ports/{name}', 'wb', buffering=0)


def say(event: str, **facts: Any) -> None:
    """Tell who watches the machine; nobody elsewhere."""
    if in_machine():
        port('said').write(json.dumps({'event': event, **facts}).encode() +
                           b'\n')


def in_machine() -> bool:
    """Whether this host is the machine, which a test may break."""
    return os.path.exists(_IS_MACHINE)


class Child:
    """A forked process that calls a function.

    :param function: its result is pickled; what it prints is a log. That of
        a generator is given step by step, and it continues when the next one
        is asked for
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._log = tempfile.TemporaryFile()
        self._answer, answer = _FORK.Pipe()
        self._process = _FORK.Process(
            target=self._call, args=(answer, function, arguments))
        self._process.start()
        answer.close()

    def _call(self, answer: Any, function: Callable[..., Any],
              arguments: Any) -> None:
        os.dup2(self._log.fileno(), 1)
        os.dup2(self._log.fileno(), 2)
        sys.stdout = open(1, 'w', buffering=1, closefd=False)
        sys.stderr = open(2, 'w', buffering=1, closefd=False)
        try:
            made = function(*arguments)
            answer.recv()
            for value in made if inspect.isgenerator(made) else (made,):
                answer.send((True, value))
                # The next step may not start before it is asked for.
                answer.recv()
        except BaseException:
            answer.send((False, traceback.format_exc()))
        # Nova's threads are not daemons: a plain exit would wait for them.
        os._exit(0)

    def result(self) -> Any:
        """Wait for it, or for its next step.

        :raises AssertionError: it raised, died or took too long
        """
        try:
            self._answer.send(None)
            if not self._answer.poll(_TIMEOUT):
                raise AssertionError(f'no answer within {_TIMEOUT} s')
            succeeded, value = self._answer.recv()
        except (EOFError, ConnectionError):
            raise AssertionError('it died') from None
        if not succeeded:
            raise AssertionError(value)
        return value

    def end(self) -> None:
        self._process.kill()
        self._process.join()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors='replace')


class _ForkedWorker:
    """Stands for the subprocess.Popen by which ``guest boot`` has a worker."""

    def __init__(self, command: list[str], *, stdin: Any, stdout: Any,
                 stderr: Any, pass_fds: Any, start_new_session: bool) -> None:
        self.returncode: int | None = None
        arguments = command[command.index('nova_kvm_ext.boot.worker') + 1:]
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            sys.stdout = open(1, 'w', buffering=1, closefd=False)
            sys.stderr = open(2, 'w', buffering=1, closefd=False)
            worker.main(arguments)
        except BaseException:
            traceback.print_exc()
        os._exit(0)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = _TIMEOUT) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired('worker', timeout)
            time.sleep(0.05)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def command(*arguments: str) -> tuple[int, str, str]:
    """Run ``nova-kvm-ext`` in this process: exit code and outputs."""
    out, err = io.StringIO(), io.StringIO()
    forking = types.SimpleNamespace(
        Popen=_ForkedWorker, DEVNULL=subprocess.DEVNULL,
        TimeoutExpired=subprocess.TimeoutExpired)
    with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
          mock.patch.object(supervisor, 'subprocess', forking)):
        code = main.main(list(arguments))
    return code, out.getvalue(), err.getvalue()


class KVMHostTestCase(base.BaseTestCase):
    """A test on a host that has KVM."""

    breaks_host = False
    """Whether it breaks the host, which it may only do in the machine."""

    def setUp(self) -> None:
        super().setUp()
        if os.geteuid() != 0:
            self.skipTest('Only root can do this')
        if self.breaks_host and not in_machine():
            self.skipTest('This breaks its host, and runs in the machine of '
                          'tools/run-kvm-tests alone')
        if not self.breaks_host and not os.path.exists('/dev/kvm'):
            self.skipTest('This host has no KVM')
        self.children: list[Child] = []
        # Not below oslotest's own directory, where only root may go.
        self.directory = tempfile.mkdtemp(dir='/var/tmp')
        self.addCleanup(shutil.rmtree, self.directory)
        os.chmod(self.directory, 0o755)
        self.addOnException(self._show_logs)
        libvirt.registerErrorHandler(lambda _context, _error: None, None)

    def _show_logs(self, exc_info: Any) -> None:
        for number, child in enumerate(self.children):
            self.addDetail(f'child-{number}', content.text_content(
                child.log()))

    def show(self, name: str, text: str) -> None:
        """Keep what was said for who reads a test's failure."""
        self.addDetail(name, content.text_content(text))

    def child(self, function: Callable[..., Any], *arguments: Any) -> Child:
        made = Child(function, *arguments)
        self.children.append(made)
        self.addCleanup(made.end)
        return made

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns in a process of its own."""
        return self.child(function, *arguments).result()

    @staticmethod
    def shell(script: str) -> str:
        done = subprocess.run(['sh', '-ec', script], text=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if done.returncode:
            raise AssertionError(f'{script}: {done.stdout}')
        return done.stdout
