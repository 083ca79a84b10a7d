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

"""Runs qemu-img with limits on memory, time and output.

The only module that starts qemu-img. qemu-img gets a file as an open file
descriptor. So the file has no name that QEMU could interpret ("json:...",
"nbd:..."), and no name that could get into an error message.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any
from typing import BinaryIO
from typing import IO

from oslo_concurrency import processutils
from oslo_utils import imageutils

from nova_kvm_ext import errors
from nova_kvm_ext.images import verdict

# Of what it says that is no image.
_ANSWER_BYTES = 1 << 20

# What one GiB of an image's file may take to convert: at the slowest,
# inflating, some 15 s on a slow core, and as much again to write.
_CPU_PER_GIB = 60

# And one GiB of its disk: a file can be a hundredth of what it inflates to,
# 3 to 5 s for each GiB.
_CPU_PER_DISK_GIB = 20

# qcow2's own tables are one part in some thousand of a disk.
_OVERHEAD_PARTS = 512
_OVERHEAD = 64 << 20

# A process that waits for its disk uses no CPU time.
_WALL_FACTOR = 20

# Of each thread; glibc takes the limit of the main thread's for it. QEMU
# starts up to 64 threads that read and write (THREAD_POOL_MAX_THREADS_DEFAULT,
# include/block/thread-pool.h), which with the usual 8 MiB would be half of
# the memory that Nova's limit gives.
_STACK = 2 << 20

# What no image can cause, by the words of strerror() in English.
_HOST_ERRORS = {
    'No space left on device':
        'Make room on the filesystem that is written to.',
    'Disk quota exceeded':
        'Make room on the filesystem that is written to, or raise its quota.',
    'Read-only file system':
        'Check the kernel\'s log: the filesystem that is written to is '
        'read-only.',
    'Cannot allocate memory':
        'Free memory on this host, or raise [libvirt] '
        'images_address_space_limit.',
    'Resource temporarily unavailable':
        'Check the limits of processes and memory of the user that runs this, '
        'and those of its systemd unit (TasksMax).',
    'Too many open files':
        'Raise the limit of open files of the user that runs this.',
    'Permission denied':
        'Let the user that runs this write there; look at SELinux or AppArmor '
        'too.',
    'Operation not permitted':
        'Check SELinux or AppArmor, and the attributes of the file.',
    'Stale file handle':
        'Check the shared filesystem that is written to.',
    'error while loading shared libraries':
        'Repair the installation of qemu-img.',
}

# On writing, for an image can cause it on reading: QEMU says it of damaged
# tables.
_WRITE_ERRORS = {
    'File too large':
        'The filesystem that is written to takes no file of this size.',
    'Input/output error':
        'Check the kernel\'s log: the disk that is written to has failed.',
}


class QemuImgError(Exception):
    """qemu-img refused an image; str() is what it said, on one line."""


class QemuImgFailure(errors.HostError):
    """qemu-img could not do its work here, whatever the image is like.

    Killed, out of time, of memory or of space: on another host, or later, the
    same image may do.
    """


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one run may use.

    :ivar cpu_time: seconds, ``[libvirt] images_cpu_time_limit``
    :ivar memory: bytes, ``[libvirt] images_address_space_limit``
    """

    cpu_time: int
    memory: int

    @classmethod
    def from_conf(cls, nova: Any) -> 'Limits':
        """Those that Nova sets for its own qemu-img info.

        :param nova: Nova's options
        """
        def value(name: str, otherwise: int) -> int:
            # Up to Nova 33 they are no options (nova/privsep/qemu.py).
            return nova.libvirt[name] if name in nova.libvirt else otherwise

        return cls(value('images_cpu_time_limit', 30),
                   value('images_address_space_limit', 1) << 30)

    def to_convert(self, file_size: int, virtual_size: int) -> 'Limits':
        """The same for a conversion, which takes time for every byte.

        :param file_size: bytes of the image's file
        :param virtual_size: bytes that the guest sees
        """
        return dataclasses.replace(
            self,
            cpu_time=self.cpu_time + (
                _CPU_PER_GIB * file_size +
                _CPU_PER_DISK_GIB * virtual_size) // (1 << 30))


def output_limit(virtual_size: int) -> int:
    """The largest file, in bytes, that a disk of this size can need."""
    return virtual_size + virtual_size // _OVERHEAD_PARTS + _OVERHEAD


def require() -> None:
    """See that there is a qemu-img.

    :raises QemuImgFailure: there is none
    """
    if shutil.which('qemu-img') is None:
        raise QemuImgFailure(
            'qemu-img is not installed.',
            'Install it (Debian: qemu-utils, Fedora and RHEL: qemu-img).')


def run(arguments: Sequence[str], limits: Limits, *,
        files: Sequence[BinaryIO] = (), output: int | None = None,
        progress: IO[str] | None = None) -> str:
    """Run qemu-img; it never outlives the call.

    Memory is bounded by what is used (RLIMIT_DATA: since Linux 4.7 all that a
    process may write to and shares with nobody), not by address space. Of the
    latter glibc reserves 64 MiB for the malloc arena of each thread, so a
    sound image would be converted or not by how many threads happened to run
    at once.

    :param arguments: those of qemu-img; a file of ``files`` is named by
        :func:`name`
    :param output: largest file it may write, in bytes; None where it writes
        its answer alone
    :param progress: where its standard output goes, instead of into the
        answer
    :raises QemuImgError: it refused the image
    :raises QemuImgFailure: it could not do its work
    """
    require()
    bounds = processutils.ProcessLimits(
        data_size=limits.memory, stack_size=_STACK, cpu_time=limits.cpu_time,
        file_size=_ANSWER_BYTES if output is None else output,
        core_file_size=0)
    # -P: a file in the working directory must not stand for the module.
    command = [sys.executable, '-P', '-m', 'oslo_concurrency.prlimit',
               *bounds.prlimit_args(), '--', 'qemu-img', *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # A session of its own: Ctrl-C comes to us, who end it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=progress or out,
            stderr=err, pass_fds=[f.fileno() for f in files],
            start_new_session=True, env=os.environ | {'LC_ALL': 'C'})
        try:
            process.wait(limits.cpu_time * _WALL_FACTOR)
        except subprocess.TimeoutExpired as e:
            raise QemuImgFailure(
                f'qemu-img has not ended within {e.timeout:g} s.',
                'Check the load of this host and its disks.') from e
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        err.seek(0)
        answer = out.read(_ANSWER_BYTES).decode('utf-8', 'replace')
        said = err.read(_ANSWER_BYTES).decode('utf-8', 'replace')
    if process.returncode:
        raise _why(process.returncode, said, limits, output is not None)
    return answer


def _why(code: int, said: str, limits: Limits, writes: bool) -> Exception:
    """What an exit code and the words with it mean."""
    words = [line.removeprefix('qemu-img: ') for line in said.splitlines()]
    last = errors.clean(errors.without_paths(' '.join(words[-3:])))
    if code < 0:
        return _signal(-code, last, limits)
    for table in (_HOST_ERRORS, _WRITE_ERRORS if writes and
                  'while reading' not in last else {}):
        for text, remedy in table.items():
            if text in last:
                return QemuImgFailure(f'qemu-img failed: {last}.', remedy)
    if 'oslo_concurrency' in last:
        # It was never started; its own words have no module of Python.
        return QemuImgFailure(f'qemu-img cannot be started: {last}.')
    return QemuImgError(last or f'exit code {code}')


def _signal(number: int, said: str, limits: Limits) -> QemuImgFailure:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f'signal {number}'
    problem = f'qemu-img was ended by {name}'
    problem += f': {said}.' if said else '.'
    if number in (signal.SIGKILL, signal.SIGXCPU):
        return QemuImgFailure(
            problem, f'It needed more than {limits.cpu_time} s of CPU time '
            '([libvirt] images_cpu_time_limit), or the kernel ended it for '
            'lack of memory (see the kernel\'s log).')
    if number in (signal.SIGABRT, signal.SIGTRAP, signal.SIGSEGV,
                  signal.SIGBUS):
        return QemuImgFailure(
            problem, f'It may have needed more than {limits.memory >> 20} MiB '
            f'of memory ([libvirt] images_address_space_limit), or this host '
            f'has no more.')
    return QemuImgFailure(problem, 'Try again.')


def name(f: BinaryIO) -> str:
    """The name by which qemu-img finds an open file."""
    return f'/dev/fd/{f.fileno()}'


def info(f: BinaryIO, limits: Limits, disk_format: str | None = None
         ) -> verdict.Info:
    """Ask about an image.

    :param disk_format: None has QEMU guess. Only for the question whether it
        guesses what oslo.utils found before, as Nova asks.
    :raises QemuImgError: no answer, or one that is invalid
    :raises QemuImgFailure: it could not do its work
    """
    arguments = ['info', '--output=json', '--force-share', name(f)]
    if disk_format is not None:
        arguments += ['-f', disk_format]
    answer = run(arguments, limits, files=[f])
    try:
        parsed = imageutils.QemuImgInfo(answer, format='json')
        specific = (parsed.format_specific or {}).get('data') or {}
        return verdict.Info(
            format=str(parsed.file_format),
            virtual_size=int(parsed.virtual_size),
            backing_file=parsed.backing_file is not None,
            data_file=specific.get('data-file') is not None,
            create_type=specific.get('create-type'))
    except (ValueError, TypeError, AttributeError) as e:
        raise QemuImgError('its answer is invalid: '
                           f'{errors.clean(e, 80)}') from e


def copy_head(f: BinaryIO, disk_format: str, to: BinaryIO, size: int,
              limits: Limits) -> None:
    """Write the beginning of an image's disk into a file, as raw bytes.

    Opens what the image names: only for one that names no other file.

    :param disk_format: what the image is
    :param size: bytes of the beginning; fewer where the disk has fewer
    :raises QemuImgError: the image cannot be read
    :raises QemuImgFailure: it could not do its work
    """
    run(['dd', '--force-share', '-f', disk_format, '-O', 'raw', f'bs={size}',
         'count=1', f'if={name(f)}', f'of={name(to)}'],
        limits, files=[f, to], output=size + _ANSWER_BYTES)
