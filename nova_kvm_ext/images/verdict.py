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

"""Whether an image is accepted, and if not, why and what to do about it.

One chain for the driver and for ``nova-kvm-ext image``. It decides as Nova
does in nova/virt/images.py, and adds what Nova has not: QED, a limit to the
virtual size, and a reason. Pure: takes facts about a file, never the file.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from oslo_utils.imageutils import format_inspector

from nova_kvm_ext.conf import Settings
from nova_kvm_ext import errors
from nova_kvm_ext.images import qed

# What Nova's inspection lets be of any content (do_image_deep_inspection).
AMI_FORMATS = ('ami', 'aki', 'ari')

# To QEMU these are raw bytes.
_RAW_FORMATS = ('raw', 'iso') + AMI_FORMATS

# QEMU never opens a guest's disk in these formats, as a base neither.
CONVERTED_FORMATS = ('qed', 'vmdk')

# Backends that copy a base byte by byte (imagebackend.Rbd, imagebackend.Lvm).
_RAW_ONLY = ('lvm', 'rbd')

# Nova keeps 255 characters of a fault, and gives 124 of them to "Build of
# instance UUID aborted: Image UUID is unacceptable: ".
FAULT_LENGTH = 131


@dataclasses.dataclass(frozen=True)
class Info:
    """What ``qemu-img info`` says.

    :ivar format: QEMU's name of the format
    :ivar virtual_size: bytes that a guest sees
    :ivar backing_file: whether it has one
    :ivar data_file: whether its data is in another file
    :ivar create_type: subformat of a VMDK
    """

    format: str
    virtual_size: int
    backing_file: bool = False
    data_file: bool = False
    create_type: str | None = None


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a file.

    Later ones are None where an earlier one says no: nobody looked then.

    :ivar file_size: bytes
    :ivar formats: what the content looks like, by oslo.utils' names; several
        where it looks like several things at once
    :ivar vmdk_problem: why QEMU may not be shown a VMDK
    :ivar failed_checks: safety checks of oslo.utils that it fails
    :ivar unreadable: oslo.utils' inspector cannot make sense of it
    :ivar qed_image: what our own reader found in a QED image
    :ivar qed_error: or why it is not a sound one: what was looked at, and
        what is wrong
    :ivar info: what qemu-img says of any other image
    :ivar info_error: or why it says nothing
    """

    file_size: int
    formats: tuple[str, ...]
    vmdk_problem: str | None = None
    failed_checks: tuple[str, ...] = ()
    unreadable: bool = False
    qed_image: qed.Image | None = None
    qed_error: tuple[str, str] | None = None
    info: Info | None = None
    info_error: str | None = None

    @property
    def format(self) -> str | None:
        """The one format that Nova would go by; None for a polyglot."""
        if set(self.formats) == {'iso', 'gpt'}:
            # A bootable ISO may begin with a partition table.
            return 'iso'
        return self.formats[0] if len(self.formats) == 1 else None

    @property
    def virtual_size(self) -> int | None:
        if self.qed_image is not None:
            return self.qed_image.header.image_size
        return None if self.info is None else self.info.virtual_size


@dataclasses.dataclass(frozen=True)
class Policy:
    """What nova.conf says about images.

    :ivar max_virtual_size: bytes, ``[kvm_ext] image_max_virtual_gb``
    :ivar vmdk_types: ``[compute] vmdk_allowed_types``
    :ivar force_raw: ``[DEFAULT] force_raw_images``
    :ivar raw_only: whether ``[libvirt] images_type`` takes raw images only
    """

    max_virtual_size: int
    vmdk_types: tuple[str, ...]
    force_raw: bool
    raw_only: bool

    @classmethod
    def from_conf(cls, settings: Settings, nova: Any) -> 'Policy':
        """Read it.

        :param nova: Nova's options
        """
        return cls(max_virtual_size=settings.image_max_virtual_gb << 30,
                   vmdk_types=tuple(nova.compute.vmdk_allowed_types),
                   force_raw=nova.force_raw_images,
                   raw_only=nova.libvirt.images_type in _RAW_ONLY)

    def converted_to(self, disk_format: str) -> str | None:
        """The format that a disk is brought into before a guest gets it.

        :param disk_format: QEMU's name
        :returns: None where it is used as it is
        """
        if disk_format == 'raw':
            return None
        if self.force_raw:
            return 'raw'
        if disk_format not in CONVERTED_FORMATS:
            return None
        return 'raw' if self.raw_only else 'qcow2'


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Accepted, or refused with the reason.

    :ivar check: the check that decided
    :ivar reason: what is wrong, as a sentence; '' where accepted
    :ivar remedy: what to do about it, as a sentence
    :ivar disk_format: what QEMU would be told that the image is
    :ivar converted_to: the format it is converted into, None as it is
    :ivar virtual_size: bytes that the guest sees, None where refused
    """

    accepted: bool
    check: str
    reason: str = ''
    remedy: str = ''
    disk_format: str | None = None
    converted_to: str | None = None
    virtual_size: int | None = None

    @property
    def said(self) -> str:
        """Reason and remedy, short enough for an instance's fault."""
        return errors.clean(f'{self.reason} {self.remedy}', FAULT_LENGTH)

    def into(self, disk_format: str) -> 'Verdict':
        """The same image, to be converted into this format."""
        return dataclasses.replace(self, converted_to=disk_format)


def _refuse(check: str, reason: str, remedy: str) -> Verdict:
    return Verdict(False, check, reason, remedy)


def _convert(disk_format: str, word: str = 'Convert') -> str:
    return (f'{word} it: qemu-img convert -f {disk_format} -O qcow2 OLD NEW')


def _upload(disk_format: str) -> str:
    return f'Upload it again with --disk-format {disk_format}.'


_FAILED: Mapping[str, tuple[str, str]] = {
    # Safety checks by oslo.utils' names.
    'backing_file': ('It has a backing file.', 'Flatten'),
    'data_file': ('Its data is in another file.', 'Flatten'),
    'unknown_features': ('It has qcow2 features that are not known.',
                         'Convert'),
    'descriptor': ('Its VMDK subformat or descriptor is not allowed.',
                   'Convert'),
    'footer': ('Its VMDK footer contradicts its header.', 'Convert'),
}

# QED's checks that its owner can do something about, and the remedy.
_QED_REMEDIES: Mapping[str, str] = {
    'backing_file': _convert('qed', 'Flatten'),
    'need_check': 'Mend it: qemu-img check -f qed -r all FILE',
    'file size': 'It is cut short: upload it again.',
}


def judge(facts: Facts, declared: str, policy: Policy,
          limit: int | None = None) -> Verdict:
    """Decide about an image.

    :param declared: disk_format as Glance has it: hostile text
    :param limit: bytes that the flavor gives to the disk, None for any
    """
    refusal = (_judge_declared(declared) or _judge_content(facts, declared) or
               _judge_qed(facts) or _judge_info(facts, declared, policy) or
               _judge_size(facts, policy, limit))
    if refusal is not None:
        return refusal
    disk_format = 'raw' if declared in _RAW_FORMATS else declared
    return Verdict(True, 'all', disk_format=disk_format,
                   converted_to=policy.converted_to(disk_format),
                   virtual_size=facts.virtual_size)


def _judge_declared(declared: str) -> Verdict | None:
    if declared in AMI_FORMATS or format_inspector.get_inspector(declared):
        return None
    return _refuse('disk_format',
                   f'disk_format {errors.clean(declared, 20)} is not '
                   f'supported.', 'Convert it to qcow2 with qemu-img.')


def _judge_content(facts: Facts, declared: str) -> Verdict | None:
    """What Nova's deep inspection decides, with the reason."""
    found = facts.format
    if facts.vmdk_problem is not None:
        return _refuse('descriptor', facts.vmdk_problem, _convert('vmdk'))
    if facts.unreadable:
        return _refuse('content', 'Its header makes no sense.',
                       _convert('FORMAT'))
    if found is None:
        return _refuse('polyglot',
                       f'It looks like {" and ".join(facts.formats[:4])} at '
                       f'once.', _convert('FORMAT'))
    if found == 'qed' and declared != 'qed':
        return _refuse('content', f'It is qed, not {declared}, as declared.',
                       _upload('qed'))
    for check in facts.failed_checks if found != 'qed' else ():
        if check == 'mbr':
            return _refuse('mbr', 'Its partition table is not valid.',
                           'Mend the partition table.')
        reason, word = _FAILED.get(check, (
            f'It fails the safety check {errors.clean(check, 20)}.',
            'Convert'))
        return _refuse(check, reason, _convert(found, word))
    if declared in AMI_FORMATS or declared == found or (
            declared == 'raw' and found == 'gpt'):
        return None
    if found == 'raw':
        return _refuse('content', f'It is no {declared}, as declared, or cut '
                       f'short.', 'Upload it whole, or with --disk-format '
                       'raw.')
    name = 'raw' if found == 'gpt' else found
    # QEMU says vpc, so Nova accepts no image that is declared as vhd.
    return _refuse('content', f'It is {name}, not {declared}, as declared.',
                   _convert('vpc') if name == 'vhd' else _upload(name))


def _judge_qed(facts: Facts) -> Verdict | None:
    if facts.qed_error is None:
        return None
    check, problem = facts.qed_error
    return _refuse(f'qed {check}',
                   f'Not a sound QED image: {errors.clean(problem, 60)}.',
                   _QED_REMEDIES.get(check, _convert('qed')))


def _judge_info(facts: Facts, declared: str, policy: Policy
                ) -> Verdict | None:
    """What Nova decides by qemu-img info, with the reason."""
    if facts.qed_image is not None:
        return None
    info = facts.info
    if info is None:
        return _refuse('qemu-img', 'qemu-img cannot read it: ' + errors.clean(
            without_paths(facts.info_error or 'no answer'), 60) + '.',
            'Check it: qemu-img check FILE')
    expected = 'raw' if declared in _RAW_FORMATS else declared
    if info.format != expected:
        return _refuse('content', f'QEMU takes it for '
                       f'{errors.clean(info.format, 20)}, not {declared}.',
                       _convert(errors.clean(info.format, 20)))
    if info.backing_file:
        return _refuse('backing_file', 'It has a backing file.',
                       _convert(info.format, 'Flatten'))
    if info.data_file:
        return _refuse('data_file', 'Its data is in another file.',
                       _convert(info.format, 'Flatten'))
    if info.format == 'vmdk' and info.create_type not in policy.vmdk_types:
        return _refuse(
            'vmdk_allowed_types',
            f'VMDK subformat {errors.clean(info.create_type, 24)} is not '
            f'allowed.', _convert('vmdk'))
    return None


def _judge_size(facts: Facts, policy: Policy, limit: int | None
                ) -> Verdict | None:
    size = facts.virtual_size or 0
    if size > policy.max_virtual_size:
        return _refuse(
            'virtual size', f'Its virtual size, {_gib(size)} GiB, is over '
            f'{_gib(policy.max_virtual_size)} GiB.',
            'Shrink it, or raise [kvm_ext] image_max_virtual_gb.')
    if limit is not None and size > limit:
        return _refuse(
            'flavor', f'Its virtual size, {_gib(size)} GiB, is over the '
            f'flavor\'s disk of {_gib(limit)} GiB.', 'Take a larger flavor.')
    return None


def _gib(size: int) -> str:
    return f'{size / (1 << 30):.4g}' if size < 1 << 40 else str(size >> 30)


def without_paths(text: str) -> str:
    """Text of Nova or qemu-img without this host's directories.

    Tenants read it in an instance's fault.
    """
    return re.sub(r'''(?<![\w:/])/(?:[^/\s'",:;]+/)+''', '', text)
