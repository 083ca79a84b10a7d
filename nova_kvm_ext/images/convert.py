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

"""Converts an image that was accepted, once and bounded.

Writes beside the destination and puts the result in place when it is whole
and has been looked at. Whatever happens before that, nothing is left: a
conversion that fails or is interrupted takes its process and its file along.
Never changes its source.
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
            overwrite: bool = False, progress: IO[str] | None = None) -> None:
    """Convert an image into what was decided.

    :param source: the image
    :param accepted: what was decided about it: what it is, so that QEMU is
        never asked to guess, its size, and the format of the result
    :param destination: path of the result
    :param limits: those of a look at an image
    :param temporary: path to write to at first, in the same directory; what
        a killed process has left there is removed. By default one of its own
    :param overwrite: whether the destination may exist; never the source
    :param progress: where qemu-img writes how far it is
    :raises ConversionError: qemu-img failed or needed too much, or what it
        made is not what was asked for
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
            _run(source, accepted, f, limits, progress)
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
         limits: qemu_img.Limits, progress: IO[str] | None) -> None:
    assert accepted.disk_format and accepted.converted_to
    # By default qemu-img convert does not wait until the result is on the
    # disk (-t unsafe); a host that crashed would keep a torn base image.
    arguments = ['convert', '-t', 'writeback', '--force-share',
                 '-f', accepted.disk_format, '-O', accepted.converted_to,
                 qemu_img.name(source), qemu_img.name(result)]
    if progress is not None:
        arguments.insert(1, '-p')
    try:
        qemu_img.run(
            arguments,
            limits.to_convert(os.fstat(source.fileno()).st_size),
            files=[source, result], progress=progress,
            output=qemu_img.output_limit(accepted.virtual_size or 0))
    except qemu_img.QemuImgError as e:
        raise ConversionError(f'qemu-img cannot convert it: {e}.') from e


def _verify(result: BinaryIO, accepted: verdict.Verdict,
            limits: qemu_img.Limits) -> None:
    """The result is what was asked for, also to who would guess its format.

    A disk whose content is itself an image would, as a raw base, be taken for
    that image by whoever looks at it next.
    """
    wanted = accepted.converted_to
    assert wanted is not None
    found = facts.read(result, wanted, limits)
    if found.format == 'iso' and wanted == 'raw':
        found = facts.read(result, 'iso', limits)
    if found.info is None or found.info.format != wanted:
        inside = ' and '.join(found.formats) or 'something unreadable'
        raise ConversionError(
            f'Its disk, as {wanted}, looks like {inside}: it is an image '
            f'within an image, or has a broken partition table.')
    if found.info.virtual_size != accepted.virtual_size:
        raise ConversionError(
            f'The result has {found.info.virtual_size} bytes, not '
            f'{accepted.virtual_size}.')
