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

"""Reads the facts about an image file.

The only reader of image files, for :mod:`nova_kvm_ext.images.verdict`. Reads
more only of a file that has passed so far: first oslo.utils' cautious
inspector, then our reader of QED or a limited qemu-img. Decides nothing.
"""

import dataclasses
import os
import tempfile
from typing import BinaryIO

from oslo_utils.imageutils import format_inspector

from nova_kvm_ext.images import qed
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import signatures
from nova_kvm_ext.images import verdict
from nova_kvm_ext.images import vmdk

# As Nova reads (nova/virt/images.py, get_image_format): what oslo.utils'
# inspector sees must not depend on who runs it.
_CHUNK = 4096

# Of a disk's content: more than any inspector and QEMU's own guess go by.
_CONTENT = 1 << 20


def read(f: BinaryIO, declared: str, limits: qemu_img.Limits
         ) -> verdict.Facts:
    """Check an image.

    :param f: the file, opened for reading; where it stands does not matter
    :param declared: disk_format as Glance has it
    :param limits: for qemu-img
    :raises OSError: the file cannot be read
    :raises qemu_img.QemuImgFailure: qemu-img could not look at it
    """
    size = os.fstat(f.fileno()).st_size
    head, tail = _ends(f, size)
    problem = vmdk.problem(head)
    if problem is not None:
        return verdict.Facts(size, ('vmdk',), vmdk_problem=problem)
    try:
        found = _inspect(f)
    except OSError:
        raise
    except Exception:
        # A parser of hostile bytes raises anything; Nova, too, takes each
        # exception of this one for a refusal.
        return verdict.Facts(size, (), unreadable=True)
    facts = verdict.Facts(
        size, tuple(sorted(str(inspector) for inspector in found)),
        packed=signatures.packed(head), by_qemu=signatures.by_qemu(head, tail),
        qcow=signatures.qcow(head))
    if facts.formats == ('qed',):
        facts = _read_qed(f, size, facts)
        return (_with_content(f, facts, 'qed', limits) if declared == 'qed'
                else facts)
    chosen = [i for i in found if str(i) == facts.format]
    if not chosen:
        return facts
    try:
        chosen[0].safety_check()
    except format_inspector.SafetyCheckFailed as e:
        return dataclasses.replace(facts,
                                   failed_checks=tuple(sorted(e.failures)))
    except Exception:
        # As above.
        return dataclasses.replace(facts, unreadable=True)
    if facts.encrypted or facts.format != declared and not (
            declared in verdict.AMI_FORMATS or
            (declared, facts.format) == ('raw', 'gpt')):
        return facts
    try:
        facts = dataclasses.replace(facts, info=qemu_img.info(f, limits))
    except qemu_img.QemuImgError as e:
        return dataclasses.replace(facts, info_error=str(e))
    assert facts.info is not None
    return _with_content(f, facts, facts.info.format, limits)


def content(f: BinaryIO, limits: qemu_img.Limits) -> verdict.Content:
    """What a disk's content looks like, as the raw file that it would be.

    :param f: a raw disk, or its beginning in a file of the disk's size
    :raises OSError: the file cannot be read
    :raises qemu_img.QemuImgFailure: qemu-img could not look at it
    """
    if _vmdk_problem(f) is not None:
        # QEMU would open what it names.
        return verdict.Content(('vmdk',), False, 'vmdk')
    sound = True
    try:
        found = _inspect(f)
        formats = tuple(sorted(str(inspector) for inspector in found))
        chosen = [i for i in found
                  if str(i) == verdict.Facts(0, formats).format]
        sound = bool(chosen)
        for inspector in chosen:
            inspector.safety_check()
    except OSError:
        raise
    except format_inspector.SafetyCheckFailed:
        sound = False
    except Exception:
        return verdict.Content((), False, None)
    try:
        return verdict.Content(formats, sound, qemu_img.info(f, limits).format)
    except qemu_img.QemuImgError:
        return verdict.Content(formats, False, None)


def _with_content(f: BinaryIO, facts: verdict.Facts, disk_format: str,
                  limits: qemu_img.Limits) -> verdict.Facts:
    """The same with what the disk's content looks like, where that is asked.

    It is not of what is raw already, and must not be of what names other
    files.
    """
    size, info = facts.virtual_size, facts.info
    if not size or disk_format == 'raw' or (info is not None and (
            info.backing_file or info.data_file or
            disk_format not in facts.formats)):
        return facts
    with tempfile.TemporaryFile() as head:
        try:
            qemu_img.copy_head(f, disk_format, head, _CONTENT, limits)
        except qemu_img.QemuImgError as e:
            return dataclasses.replace(facts, content_error=str(e))
        try:
            os.truncate(head.fileno(), size)
        except OSError:
            # Larger than a file can be here; what is behind has no say.
            pass
        return dataclasses.replace(facts, content=content(head, limits))


def _ends(f: BinaryIO, size: int) -> tuple[bytes, bytes]:
    f.seek(0)
    head = f.read(signatures.HEAD)
    f.seek(max(0, size - signatures.TAIL))
    return head, f.read(signatures.TAIL)


def detect(f: BinaryIO) -> str:
    """The disk_format that a user who looks at the content would declare.

    :raises OSError: the file cannot be read
    """
    if _vmdk_problem(f) is not None:
        return 'vmdk'
    try:
        found = verdict.Facts(0, tuple(str(i) for i in _inspect(f))).format
    except OSError:
        raise
    except Exception:
        # As above; whatever it is declared as, it will be refused.
        found = None
    # A disk with a partition table is what Glance calls raw.
    return 'raw' if found in (None, 'gpt') else str(found)


def _vmdk_problem(f: BinaryIO) -> vmdk.Problem | None:
    f.seek(0)
    return vmdk.problem(f.read(vmdk.HEAD))


def _inspect(f: BinaryIO) -> list[format_inspector.FileInspector]:
    """What the content looks like; at least one."""
    # Closing the inspector closes what it reads from. A duplicate descriptor
    # would share its position with f, behind the back of f's buffer.
    with open(f'/proc/self/fd/{f.fileno()}', 'rb') as copy:
        wrapper = format_inspector.InspectWrapper(copy)
        try:
            while wrapper.read(_CHUNK):
                if wrapper.formats:
                    break
        finally:
            wrapper.close()
        return list(wrapper.formats or ())


def _read_qed(f: BinaryIO, size: int, facts: verdict.Facts
              ) -> verdict.Facts:
    try:
        return dataclasses.replace(facts, qed_image=qed.check(f, size))
    except qed.QEDError as e:
        return dataclasses.replace(facts, qed_error=(e.check, str(e)))
