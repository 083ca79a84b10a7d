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

"""Runs qemu-img with bounds on memory, time and output.

The only place here that starts qemu-img. A file goes to it as an open file
descriptor, so it has no name: none that QEMU could take for something else
("json:...", "nbd:..."), and none to find its way into an error message.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
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

# qcow2's own tables are one part in some thousand of a disk.
_OVERHEAD_PARTS = 512
_OVERHEAD = 64 << 20

# A process that waits for its disk uses no CPU time.
_WALL_FACTOR = 20


class QemuImgError(Exception):
    """qemu-img failed; str() is what it said, on one line."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one run may use.

    :ivar cpu_time: seconds, ``[libvirt] images_cpu_time_limit``
    :ivar memory: bytes of address space, ``images_address_space_limit``
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

    def to_convert(self, file_size: int) -> 'Limits':
        """The same for a conversion, which takes time for every byte."""
        return dataclasses.replace(
            self,
            cpu_time=self.cpu_time + _CPU_PER_GIB * file_size // (1 << 30))


def output_limit(virtual_size: int) -> int:
    """The largest file, in bytes, that a disk of this size can need."""
    return virtual_size + virtual_size // _OVERHEAD_PARTS + _OVERHEAD


def run(arguments: Sequence[str], limits: Limits, *,
        files: Sequence[BinaryIO] = (), output: int = _ANSWER_BYTES,
        progress: IO[str] | None = None) -> str:
    """Run qemu-img; it never outlives the call.

    :param arguments: those of qemu-img; a file of ``files`` is named by
        :func:`name`
    :param output: largest file it may write, in bytes
    :param progress: where its standard output goes, instead of into the
        answer
    :raises QemuImgError: it failed, or needed more than it may
    """
    bounds = processutils.ProcessLimits(
        address_space=limits.memory, cpu_time=limits.cpu_time,
        file_size=output, core_file_size=0)
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
            raise QemuImgError('it took too long') from e
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
        raise QemuImgError(_why(process.returncode, said, limits))
    return answer


def _why(code: int, said: str, limits: Limits) -> str:
    if -code in (signal.SIGKILL, signal.SIGXCPU):
        return f'it needed more than {limits.cpu_time} s of CPU time'
    if code < 0:
        return f'it was ended by signal {-code}'
    words = [line.removeprefix('qemu-img: ') for line in said.splitlines()]
    return errors.clean(verdict.without_paths(' '.join(words[-3:]))
                        or f'exit code {code}')


def name(f: BinaryIO) -> str:
    """The name by which qemu-img finds an open file."""
    return f'/dev/fd/{f.fileno()}'


def info(f: BinaryIO, limits: Limits, disk_format: str | None = None
         ) -> verdict.Info:
    """Ask about an image.

    :param disk_format: None has QEMU guess. Only for the question whether it
        guesses what oslo.utils found before, as Nova asks.
    :raises QemuImgError: no answer, or one that makes no sense
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
        raise QemuImgError(f'its answer makes no sense: '
                           f'{errors.clean(e, 80)}') from e
