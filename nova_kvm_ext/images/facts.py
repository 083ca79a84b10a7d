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

"""Reads what :mod:`nova_kvm_ext.images.verdict` decides by off a file.

The only reader of image files. Looks closer only at what has passed so far:
first oslo.utils' cautious inspector, then our reader of QED or a bounded
qemu-img. Decides nothing.
"""

import os
from typing import BinaryIO

from oslo_utils.imageutils import format_inspector

from nova_kvm_ext.images import qed
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import verdict
from nova_kvm_ext.images import vmdk

# As Nova reads (nova/virt/images.py, get_image_format): what oslo.utils'
# inspector sees must not depend on who runs it.
_CHUNK = 4096


def read(f: BinaryIO, declared: str, limits: qemu_img.Limits
         ) -> verdict.Facts:
    """Look at an image.

    :param f: the file, opened for reading; where it stands does not matter
    :param declared: disk_format as Glance has it
    :param limits: for qemu-img
    :raises OSError: the file cannot be read
    """
    size = os.fstat(f.fileno()).st_size
    problem = _vmdk_problem(f)
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
    formats = tuple(sorted(str(inspector) for inspector in found))
    if formats == ('qed',):
        return _read_qed(f, size)
    facts = verdict.Facts(size, formats)
    chosen = [i for i in found if str(i) == facts.format]
    if not chosen:
        return facts
    try:
        chosen[0].safety_check()
    except format_inspector.SafetyCheckFailed as e:
        return verdict.Facts(size, formats,
                             failed_checks=tuple(sorted(e.failures)))
    except Exception:
        # As above.
        return verdict.Facts(size, formats, unreadable=True)
    if facts.format != declared and not (
            declared in verdict.AMI_FORMATS or
            (declared, facts.format) == ('raw', 'gpt')):
        return facts
    try:
        return verdict.Facts(size, formats, info=qemu_img.info(f, limits))
    except qemu_img.QemuImgError as e:
        return verdict.Facts(size, formats, info_error=str(e))


def detect(f: BinaryIO) -> str:
    """The disk_format that someone who looks at the content would declare.

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


def _vmdk_problem(f: BinaryIO) -> str | None:
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


def _read_qed(f: BinaryIO, size: int) -> verdict.Facts:
    try:
        return verdict.Facts(size, ('qed',),
                             qed_image=qed.check(f, size))
    except qed.QEDError as e:
        return verdict.Facts(size, ('qed',), qed_error=(e.check, str(e)))
