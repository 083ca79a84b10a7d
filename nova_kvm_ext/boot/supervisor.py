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

"""Boots one temporary guest in a worker process and cleans up after it.

Relays the worker's output, ends the worker on a time-out or when the user
stops the command, and always removes what the worker made. Imports neither
Nova nor libvirt, so that it reacts to a signal at once.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Any
from typing import BinaryIO
import uuid

from nova_kvm_ext.boot import leftovers
from nova_kvm_ext.boot.spec import NO_AGENT
from nova_kvm_ext.boot.spec import Spec
from nova_kvm_ext.boot import testguest
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

# Seconds: what a step other than waiting for the guest may take (building the
# test guest and libvirt's first look at QEMU are the long ones), and what an
# ended worker gets to finish the libvirt call that it is in.
_STEP_LIMIT = 300
_GRACE = 10
# Seconds of silence after which the user is told that work goes on.
_PATIENCE = 20

# Files 0600, directories 0711.
_UMASK = 0o066

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def boot(spec: Spec, on_event: Callable[[dict[str, Any]], None]) -> int:
    """Boot a guest, verify it, destroy it.

    Must be called in the main thread: it handles SIGINT, SIGTERM and SIGHUP.

    :param on_event: is given each event as it happens: ``step`` (name,
        details, seconds), ``progress``, ``log``, ``check``, ``domain``,
        ``xml``, ``error``, ``left`` and ``kept`` (text)
    :returns: an exit code
    :raises errors.HostError: nothing can be made on this host
    """
    with _signals() as signals, _private():
        for message in leftovers.sweep():
            on_event({'event': 'left', 'text': message})
        directory, lock = leftovers.make_directory()
        record = leftovers.Record(
            directory, str(uuid.uuid4()), uri='', keep=spec.keep,
            tap='nke' + uuid.uuid4().hex[:8] if spec.bridge else None)
        worker = None
        try:
            record.write()
            step = time.monotonic()
            spec, what = _image(spec, on_event)
            on_event({'event': 'step', 'name': 'image', 'details': what,
                      'seconds': round(time.monotonic() - step, 2)})
            worker, events = _start(record, spec, lock)
            with events:
                code = _relay(worker, directory, events, signals,
                              spec.timeout, on_event)
        except testguest.BuildError as e:
            raise errors.HostError(str(e)) from e
        except OSError as e:
            raise errors.HostError(
                f'The boot cannot be prepared in {directory}: '
                f'{e.strerror}.') from e
        finally:
            if worker is not None:
                _end(worker)
            left = _clean(leftovers.read_record(directory) or record, on_event)
            os.close(lock)
    return ExitCode.LEFTOVERS if left and code == 0 else code


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Let others read no file that this process and its worker make.

    Settings can have passwords, logs repeat them, and images are tenants'.
    Directories can be passed through: libvirt gives disks to QEMU's user, who
    must be able to get there. --keep keeps all of this.
    """
    before = os.umask(_UMASK)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Turn signals into bytes that can be waited for.

    Nothing is interrupted at a place where it would be left half done, and a
    second Ctrl-C changes nothing.

    :returns: a file descriptor to read signal numbers from
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def note(signum: int, frame: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, bytes([signum]))

    previous = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield reader
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _image(spec: Spec, on_event: Callable[[dict[str, Any]], None]
           ) -> tuple[Spec, str]:
    """With an image, and what that is; the test guest is built if need be.

    Only a test guest that has an agent gets a channel for it unasked.

    Here and not in the worker, because under Nova's green threads a wait for
    a lock would stop everything. It takes a second.

    :raises testguest.BuildError: the test guest cannot be built
    """
    if spec.image is not None:
        return spec, spec.image
    guest = testguest.build(
        spec.cache_dir,
        progress=lambda text: on_event({'event': 'progress', 'text': text}))
    properties = dict(spec.properties)
    if guest.agent:
        properties.setdefault('hw_qemu_guest_agent', 'yes')
    return dataclasses.replace(
        spec, image=guest.path, properties=properties,
        has_agent=guest.agent), (
        f'test guest, kernel {guest.kernel}, '
        f'{"with" if guest.agent else "without"} guest agent'
        f'{", cached" if guest.cached else ""}'
        f'{"" if guest.agent else f"; {NO_AGENT}"}')


def _start(record: leftovers.Record, spec: Spec, lock: int
           ) -> tuple[subprocess.Popen[bytes], BinaryIO]:
    """Start the worker.

    :param lock: the directory's lock; the worker holds it too, so that the
        directory counts as owned as long as either lives
    :returns: the worker and its events
    """
    settings = os.path.join(record.directory, 'settings.conf')
    with open(settings, 'w') as f:
        f.write(spec.settings)
    spec = dataclasses.replace(
        spec, config_files=[*spec.config_files, settings])
    path = os.path.join(record.directory, 'spec.json')
    with open(path, 'w') as f:
        json.dump({'spec': dataclasses.asdict(spec),
                   'record': dataclasses.asdict(record)}, f)
    reader, writer = os.pipe()
    events = os.fdopen(reader, 'rb', buffering=0)
    with open(_output(record.directory), 'wb') as output, \
            os.fdopen(writer, 'wb'):
        worker = subprocess.Popen(
            [sys.executable, '-m', 'nova_kvm_ext.boot.worker', path,
             str(writer), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            pass_fds=[writer, lock], start_new_session=True)
    return worker, events


def _output(directory: str) -> str:
    return os.path.join(directory, 'worker.log')


def _last_words(directory: str) -> str:
    """The end of what the worker printed: a traceback, if it crashed."""
    with open(_output(directory), errors='replace') as f:
        lines = [errors.clean(line) for line in f.readlines()[-200:]]
    return '\n  '.join(line for line in lines[-5:] if line)


def _relay(worker: subprocess.Popen[bytes], directory: str, events: BinaryIO,
           signals: int, boot_timeout: float,
           on_event: Callable[[dict[str, Any]], None]) -> int:
    """Pass events on until the worker is done or must be ended.

    :param boot_timeout: seconds that the worker may wait for the guest
    :returns: an exit code
    """
    def give_up(code: int, text: str) -> int:
        on_event({'event': 'error', 'text': text})
        return code

    limit: float = _STEP_LIMIT
    step = since = time.monotonic()
    code = None
    pending = b''
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
        selector.register(signals, selectors.EVENT_READ)
        while True:
            left = since + limit - time.monotonic()
            ready = {key.fd for key, _ in selector.select(
                max(0, min(left, _PATIENCE)))}
            if signals in ready:
                number = os.read(signals, 1)[0]
                return give_up(128 + number,
                               f'{signal.Signals(number).name}: stopping.')
            if not ready and left > _PATIENCE:
                on_event({'event': 'progress', 'text':
                          f'still busy, {time.monotonic() - step:.0f} s '
                          f'since the last step'})
                continue
            if not ready:
                return give_up(
                    ExitCode.HOST,
                    f'Nothing happened for {limit:g} s, so the boot is ended. '
                    'Does libvirt answer (virsh list)?')
            data = os.read(events.fileno(), 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b'\n')
            since = time.monotonic()
            for event in map(json.loads, lines):
                if event['event'] == 'done':
                    code = event['code']
                    continue
                if event['event'] == 'step':
                    event['seconds'] = round(since - step, 2)
                    step = since
                    limit = _STEP_LIMIT + (
                        boot_timeout if event['name'] == 'spawn' else 0)
                on_event(event)
    try:
        status = worker.wait(_GRACE)
    except subprocess.TimeoutExpired:
        status = None
    if code is not None:
        return code
    how = ('fell silent' if status is None else
           f'was killed by {signal.Signals(-status).name}' if status < 0
           else f'ended with status {status}')
    return give_up(ExitCode.HOST,
                   f'The worker {how} before it was done. '
                   f'{_last_words(directory)}'.strip())


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End the worker if it has not ended: it may be inside a libvirt call."""
    if worker.poll() is None:
        worker.terminate()
        try:
            worker.wait(_GRACE)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _clean(record: leftovers.Record,
           on_event: Callable[[dict[str, Any]], None]) -> bool:
    """Remove what the boot made, unless it is to be kept.

    :returns: whether something is left that should not be
    """
    if record.keep:
        on_event({'event': 'kept', 'text': record.describe_removal()})
        return False
    problems = leftovers.clean(record)
    for problem in problems:
        on_event({'event': 'left', 'text': problem})
    return bool(problems)
