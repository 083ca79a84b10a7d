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

"""Converts an image that was accepted, once and with limits.

Writes a file beside the destination, and moves it to the destination after it
is complete and checked. A conversion that fails or is interrupted leaves
neither a process nor a file. Never changes its source.
"""

import contextlib
import os
from typing import BinaryIO
from typing import IO
import uuid

from nova_kvm_ext.images import facts
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import verdict


class ConversionError(Exception):
    """The image cannot be converted; str() is a sentence without paths."""


def convert(source: BinaryIO, accepted: verdict.Verdict, destination: str,
            limits: qemu_img.Limits, *, temporary: str | None = None,
            overwrite: bool = False, direct: bool = False,
            progress: IO[str] | None = None) -> None:
    """Convert an image into what was decided.

    :param source: the image
    :param accepted: what was decided about it: what it is, so that QEMU is
        never asked to guess, its size, and the format of the result
    :param destination: path of the result
    :param limits: those of a check of an image
    :param temporary: path to write to at first, in the same directory; what
        a killed process has left there is removed. By default one of its own
    :param overwrite: whether the destination may exist; never the source
    :param direct: whether the destination's filesystem takes direct I/O,
        which spares the page cache
    :param progress: where qemu-img writes how far it is
    :raises ConversionError: qemu-img refused the image, or what it made is
        not what was asked for
    :raises qemu_img.QemuImgFailure: it could not do its work on this host
    :raises FileExistsError: the destination exists
    :raises OSError: the destination cannot be written
    """
    if os.path.exists(destination):
        if os.path.samestat(os.stat(destination), os.fstat(source.fileno())):
            raise FileExistsError('source and destination are one file')
        if not overwrite:
            raise FileExistsError('the destination exists')
    if temporary is None:
        temporary = f'{destination}.{uuid.uuid4().hex[:8]}.converted'
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    try:
        with open(temporary, 'x+b') as f:
            _run(source, accepted, f, limits, direct, progress)
            _verify(f, accepted, limits)
        if overwrite:
            os.replace(temporary, destination)
        else:
            # Unlike a rename it fails where something came in between.
            os.link(temporary, destination)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _run(source: BinaryIO, accepted: verdict.Verdict, result: BinaryIO,
         limits: qemu_img.Limits, direct: bool, progress: IO[str] | None
         ) -> None:
    assert accepted.disk_format and accepted.converted_to
    # By default qemu-img convert does not wait until the result is on the
    # disk (-t unsafe); a host that crashed would keep a torn base image.
    arguments = ['convert', '-t', 'none' if direct else 'writeback',
                 '--force-share', '-f', accepted.disk_format,
                 '-O', accepted.converted_to,
                 qemu_img.name(source), qemu_img.name(result)]
    if progress is not None:
        arguments.insert(1, '-p')
    size = accepted.virtual_size or 0
    try:
        qemu_img.run(
            arguments,
            limits.to_convert(os.fstat(source.fileno()).st_size, size),
            files=[source, result], progress=progress,
            output=qemu_img.output_limit(size))
    except qemu_img.QemuImgError as e:
        _read_through(source)
        raise ConversionError(f'qemu-img cannot convert it: {e}.') from e


def _read_through(source: BinaryIO) -> None:
    """Whether it is the disk below the image that cannot be read.

    QEMU says "Input/output error" of damaged tables in an image as well.

    :raises qemu_img.QemuImgFailure: it is
    """
    try:
        source.seek(0)
        while source.read(1 << 20):
            pass
    except OSError as e:
        raise qemu_img.QemuImgFailure(
            f'The image cannot be read from this host\'s disk: '
            f'{e.strerror}.', 'Check the kernel\'s log.') from e


def _verify(result: BinaryIO, accepted: verdict.Verdict,
            limits: qemu_img.Limits) -> None:
    """The result is what was asked for, also to who would guess its format.

    A disk whose content is itself an image would, as a raw base, be taken for
    that image by the next reader.
    """
    wanted = accepted.converted_to
    assert wanted is not None
    if wanted == 'raw':
        inside = facts.content(result, limits)
        if inside.problem(accepted.inspected):
            raise ConversionError(inside.problem(accepted.inspected))
        size: int | None = os.fstat(result.fileno()).st_size
    else:
        found = facts.read(result, wanted, limits)
        if found.info is None or found.info.format != wanted:
            raise ConversionError(
                f'What qemu-img made of it is no sound {wanted}.')
        size = found.info.virtual_size
    if size != accepted.virtual_size:
        raise ConversionError(
            f'The result has {size} bytes, not {accepted.virtual_size}.')
