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

"""Whether an image is accepted; if not, the reason and the remedy.

The driver and ``nova-kvm-ext image`` use the same rules. They are those of
nova/virt/images.py, with additions: QED, a limit of the virtual size, and a
reason. Pure: takes facts about a file, never the file.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from oslo_utils.imageutils import format_inspector

from nova_kvm_ext import errors
from nova_kvm_ext.images import qed
from nova_kvm_ext.images import signatures
from nova_kvm_ext.images import vmdk
from nova_kvm_ext.settings import Settings

# What Nova's inspection lets be of any content (do_image_deep_inspection).
AMI_FORMATS = ('ami', 'aki', 'ari')

# To QEMU these are raw bytes.
_RAW_FORMATS = ('raw', 'iso') + AMI_FORMATS

# Never the base of a disk: QEMU opens no guest's disk of the first two, and
# Nova gives an overlay the block size of its base as cluster size, which for
# VHDX is more than the 2 MiB that a qcow2 can have.
CONVERTED_FORMATS = ('qed', 'vmdk', 'vhdx')

# Backends that copy a base byte by byte (imagebackend.Rbd, imagebackend.Lvm).
_RAW_ONLY = ('lvm', 'rbd')

# The highest feature bit of a qcow2 that QEMU knows: extended L2 entries
# (docs/interop/qcow2.txt).
_QCOW2_FEATURES = (1 << 5) - 1

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
class Content:
    """What a disk's content looks like, as the raw file that it would be.

    :ivar formats: by oslo.utils' names
    :ivar sound: whether it passes what Nova looks at before it makes an
        overlay of a base (imagebackend.Qcow2.create_image)
    :ivar qemu: what QEMU would take the file for; None where it says nothing
    """

    formats: tuple[str, ...]
    sound: bool
    qemu: str | None

    def problem(self, inspected: bool) -> str:
        """Why it cannot be a raw base; '' where it can.

        :param inspected: whether Nova inspects bases
        """
        if self.qemu == 'raw' and (self.sound or not inspected):
            return ''
        if self.qemu == 'raw':
            return 'Nova accepts no raw disk with such a partition table.'
        looks = (' and '.join({*self.formats} - {'raw'}) or
                 self.qemu or 'something unreadable')
        return (f'Its disk, as raw, looks like {errors.clean(looks, 20)}: it '
                f'is an image within an image.')


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
    :ivar qed_error: or why it is not a sound one: what was checked, and
        what is wrong
    :ivar info: what qemu-img says of any other image
    :ivar info_error: or why it says nothing
    :ivar packed: the file is compressed, or an archive
    :ivar by_qemu: QEMU reads it if it is told, Nova does not know it
    :ivar qcow: version, incompatible features and whether it is encrypted,
        of a qcow or qcow2
    :ivar content: what the disk's content looks like, of what is not raw
    :ivar content_error: or why QEMU cannot read that
    """

    file_size: int
    formats: tuple[str, ...]
    vmdk_problem: vmdk.Problem | None = None
    failed_checks: tuple[str, ...] = ()
    unreadable: bool = False
    qed_image: qed.Image | None = None
    qed_error: tuple[str, str] | None = None
    info: Info | None = None
    info_error: str | None = None
    packed: signatures.Signature | None = None
    by_qemu: signatures.Signature | None = None
    qcow: tuple[int, int, bool] | None = None
    content: Content | None = None
    content_error: str | None = None

    @property
    def format(self) -> str | None:
        """The one format that Nova would use; None for a polyglot."""
        if set(self.formats) == {'iso', 'gpt'}:
            # A bootable ISO may begin with a partition table.
            return 'iso'
        return self.formats[0] if len(self.formats) == 1 else None

    @property
    def encrypted(self) -> bool:
        """Whether it takes a passphrase to read the disk."""
        return (self.format == 'luks' or
                self.format == 'qcow2' and self.qcow is not None and
                self.qcow[2])

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
    :ivar overlays: whether disks are overlays, whose base Nova inspects at
        each boot
    """

    max_virtual_size: int
    vmdk_types: tuple[str, ...]
    force_raw: bool
    raw_only: bool
    overlays: bool = True

    @classmethod
    def from_conf(cls, settings: Settings, nova: Any) -> 'Policy':
        """Read it.

        :param nova: Nova's options
        """
        return cls(max_virtual_size=settings.image_max_virtual_gb << 30,
                   vmdk_types=tuple(nova.compute.vmdk_allowed_types),
                   force_raw=nova.force_raw_images,
                   raw_only=nova.libvirt.images_type in _RAW_ONLY,
                   # As imagebackend.Backend chooses.
                   overlays=(nova.libvirt.images_type == 'qcow2' or
                             nova.libvirt.images_type == 'default' and
                             nova.use_cow_images))

    def converted_to(self, disk_format: str, as_raw: bool = True
                     ) -> str | None:
        """The format that a disk is brought into before a guest gets it.

        :param disk_format: QEMU's name
        :param as_raw: whether the disk's content can be a raw base
        :returns: None where it is used as it is
        """
        if disk_format == 'raw':
            return None
        if self.raw_only or self.force_raw and (as_raw or not self.overlays):
            return 'raw' if (self.force_raw or
                             disk_format in CONVERTED_FORMATS) else None
        return 'qcow2' if disk_format in CONVERTED_FORMATS else None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Accepted, or refused with the reason.

    :ivar check: the check that decided
    :ivar reason: what is wrong, as a sentence; '' where accepted
    :ivar remedy: what to do about it, as a sentence
    :ivar brief: the remedy in fewer words; '' where it is short
    :ivar disk_format: what QEMU would be told that the image is
    :ivar converted_to: the format it is converted into, None as it is
    :ivar virtual_size: bytes that the guest sees, None where refused
    :ivar inspected: whether Nova will inspect what was made of it
    """

    accepted: bool
    check: str
    reason: str = ''
    remedy: str = ''
    brief: str = ''
    disk_format: str | None = None
    converted_to: str | None = None
    virtual_size: int | None = None
    inspected: bool = False

    @property
    def said(self) -> str:
        """Reason and remedy, short enough for an instance's fault."""
        return errors.clean(f'{self.reason} {self.brief or self.remedy}',
                            FAULT_LENGTH)

    def into(self, disk_format: str) -> 'Verdict':
        """The same image, to be converted into this format."""
        return dataclasses.replace(self, converted_to=disk_format)


def _refuse(check: str, reason: str, remedy: str, brief: str = '') -> Verdict:
    return Verdict(False, check, reason, remedy, brief)


# In the commands OLD is the image, or what else the words before name, and
# NEW what is made; test_remedies follows each of them.
def _convert(disk_format: str, word: str = 'Convert it') -> str:
    return f'{word}: qemu-img convert -f {disk_format} -O qcow2 OLD NEW'


def _upload(disk_format: str) -> str:
    return f'Upload it again with --disk-format {disk_format}.'


_UPLOAD_WHOLE = 'It may be cut short: compare its size and upload it again.'

# Safety checks by oslo.utils' names.
_FAILED: Mapping[str, tuple[str, str]] = {
    'backing_file': ('It has a backing file.', 'Flatten it'),
    'data_file': ('Its data is in another file.', 'Flatten it'),
    'unknown_features': ('It has qcow2 features that Nova does not know.',
                         'Convert it'),
    'descriptor': ('Its VMDK subformat or descriptor is not allowed.',
                   'Convert it'),
    'footer': ('Its VMDK footer contradicts its header.', 'Convert it'),
}

_VMDK_REMEDIES: Mapping[vmdk.Problem, str] = {
    vmdk.Problem.OTHER_FILES: _convert('vmdk', 'Convert it beside them'),
    vmdk.Problem.EXTENT: _convert(
        'vmdk', 'Convert the descriptor (OLD) beside it'),
    vmdk.Problem.LONG: _convert('vmdk'),
    vmdk.Problem.CUT_SHORT: _UPLOAD_WHOLE,
}

# QED's checks that its owner can do something about, and the remedy.
_QED_REMEDIES: Mapping[str, str] = {
    'backing_file': _convert('qed', 'Flatten it'),
    'need_check': 'Repair it: qemu-img check -f qed -r all OLD',
    'tables': 'Repair it: qemu-img check -f qed -r all OLD',
    'file size': 'It is cut short: upload it again.',
}


def judge(facts: Facts, declared: str, policy: Policy,
          limit: int | None = None, kernel: bool = False) -> Verdict:
    """Decide about an image.

    :param declared: disk_format as Glance has it: hostile text
    :param limit: bytes that the flavor gives to the disk, None for any
    :param kernel: whether the guest gets a kernel of its own, so that its
        firmware need not find one on the disk
    """
    refusal = (_judge_declared(facts, declared, policy) or
               _judge_content(facts, declared, policy, kernel) or
               _judge_qed(facts) or _judge_info(facts, declared, policy) or
               _judge_inside(facts, declared, policy) or
               _judge_size(facts, policy, limit))
    if refusal is not None:
        return refusal
    disk_format = 'raw' if declared in _RAW_FORMATS else declared
    as_raw = facts.content is None or not facts.content.problem(
        policy.overlays)
    return Verdict(True, 'all', disk_format=disk_format,
                   converted_to=policy.converted_to(disk_format, as_raw),
                   virtual_size=facts.virtual_size, inspected=policy.overlays)


def _declare(facts: Facts, declared: str, policy: Policy, reason: str,
             check: str = 'content') -> Verdict:
    """Refuse what is declared as something that it is not.

    To declare it as what it is helps where it is accepted as that.
    """
    found = facts.format
    name = 'raw' if found in ('gpt', None) else found
    assert name is not None
    return (_judge_content(facts, name, policy, False) or
            _judge_qed(facts) or _refuse(check, reason, _upload(name)))


def _judge_declared(facts: Facts, declared: str, policy: Policy
                    ) -> Verdict | None:
    if declared in AMI_FORMATS or format_inspector.get_inspector(declared):
        return None
    reason = f'disk_format {errors.clean(declared, 20)} is not supported.'
    if facts.vmdk_problem or facts.unreadable or facts.format is None:
        return _refuse('disk_format', reason,
                       'Convert it to qcow2 with qemu-img.')
    if facts.format == 'vhd' or facts.by_qemu is not None:
        return _refuse('disk_format', reason, _convert(
            str(facts.by_qemu.disk_format) if facts.by_qemu else 'vpc'))
    return _declare(facts, declared, policy, reason, 'disk_format')


def _judge_content(facts: Facts, declared: str, policy: Policy, kernel: bool
                   ) -> Verdict | None:
    """What Nova's deep inspection decides, with the reason."""
    found = facts.format
    if facts.vmdk_problem is not None:
        return _refuse('descriptor', facts.vmdk_problem.value,
                       _VMDK_REMEDIES[facts.vmdk_problem])
    if facts.unreadable:
        return _refuse('content', 'Its header is invalid.', _UPLOAD_WHOLE)
    if found is None:
        disk_format = next((name for name in facts.formats
                            if name not in ('gpt', 'iso')), 'raw')
        return _refuse('polyglot',
                       f'It looks like {" and ".join(facts.formats[:4])} at '
                       f'once.', _convert(
                           'vpc' if disk_format == 'vhd' else disk_format))
    if facts.failed_checks and found != 'qed':
        return _failed(facts, found)
    if facts.encrypted:
        return _encrypted(found)
    if declared in AMI_FORMATS and found != 'qed':
        return None
    if declared != found and not (declared == 'raw' and found == 'gpt'):
        return _mismatch(facts, found, declared, policy)
    if facts.packed is not None and found == 'raw' and not kernel:
        return _packed(facts.packed)
    return None


def _mismatch(facts: Facts, found: str, declared: str, policy: Policy
              ) -> Verdict:
    if found == 'vhd':
        # QEMU says vpc, so Nova accepts no image that is declared as vhd.
        return _refuse('content', f'It is vhd, not {declared}, as declared.',
                       _convert('vpc'))
    if found != 'raw':
        name = 'raw' if found == 'gpt' else found
        return _declare(facts, declared, policy,
                        f'It is {name}, not {declared}, as declared.')
    if facts.packed is not None:
        return _packed(facts.packed)
    if facts.by_qemu is not None:
        return _refuse(
            'content', f'It is {facts.by_qemu.name}, not {declared}, as '
            f'declared.', _convert(str(facts.by_qemu.disk_format)))
    return _refuse('content', f'It is no {declared}, as declared, or cut '
                   f'short.', 'Upload it whole, or, if it is a raw disk, '
                   'with --disk-format raw.')


def _packed(packed: signatures.Signature) -> Verdict:
    return _refuse(
        'packed', f'It is a {packed.name} file, from which nothing boots.',
        f'Upload what is inside: {packed.unpack}')


def _failed(facts: Facts, found: str) -> Verdict:
    """The first safety check that failed, and what its owner can do."""
    check = facts.failed_checks[0]
    if check == 'mbr':
        return _refuse(
            'mbr', 'Nova accepts no raw disk with such a partition table.',
            _convert('raw'))
    if found == 'luks':
        return _refuse(check, 'It is encrypted, by a LUKS that QEMU does not '
                       'know.', 'Decrypt it with cryptsetup.')
    version, features, _ = facts.qcow or (2, 0, False)
    if found == 'qcow2' and version == 1:
        old = _encrypted('qcow') if facts.qcow and facts.qcow[2] else None
        return old or _refuse(
            check, 'It is qcow version 1.', _convert(
                'qcow', 'Flatten it' if 'backing_file' in facts.failed_checks
                else 'Convert it'))
    if found == 'qcow2' and (version not in (2, 3) or
                             features & ~_QCOW2_FEATURES):
        return _refuse(
            check, 'It has qcow2 features that QEMU does not know.',
            'Make it again without them, by the program that made it.')
    reason, word = _FAILED.get(check, (
        f'It fails the safety check {errors.clean(check, 20)}.',
        'Convert it'))
    return _refuse(check, reason, _convert(
        'vpc' if found == 'vhd' else found, word))


def _judge_qed(facts: Facts) -> Verdict | None:
    if facts.qed_error is None:
        return None
    check, problem = facts.qed_error
    return _refuse(f'qed {check}',
                   f'Not a sound QED image: {errors.clean(problem, 60)}.',
                   _QED_REMEDIES.get(check, _UPLOAD_WHOLE))


def _encrypted(disk_format: str) -> Verdict:
    key = ('key-secret' if disk_format == 'luks' else
           'encrypt.format=aes,encrypt.key-secret' if disk_format == 'qcow'
           else 'encrypt.key-secret')
    return _refuse(
        'encrypted', f'It is encrypted ({disk_format}); nobody has the '
        f'passphrase at a boot.',
        f'Decrypt it: qemu-img convert --object secret,id=s,file=PASSPHRASE '
        f'--image-opts driver={disk_format},{key}=s,file.filename=OLD -O '
        f'qcow2 NEW', 'Decrypt it with qemu-img convert.')


def _judge_info(facts: Facts, declared: str, policy: Policy
                ) -> Verdict | None:
    """What Nova decides by qemu-img info, with the reason."""
    if facts.qed_image is not None:
        return None
    info = facts.info
    if info is None:
        return _refuse('qemu-img', 'qemu-img cannot read it: ' + errors.clean(
            errors.without_paths(facts.info_error or 'no answer'), 60) + '.',
            'Check it: qemu-img check OLD')
    expected = 'raw' if declared in _RAW_FORMATS else declared
    if info.format != expected:
        return _refuse('content', f'QEMU takes it for '
                       f'{errors.clean(info.format, 20)}, not {declared}.',
                       _convert(errors.clean(info.format, 20)))
    if info.backing_file:
        return _refuse('backing_file', 'It has a backing file.',
                       _convert(info.format, 'Flatten it'))
    if info.data_file:
        return _refuse('data_file', 'Its data is in another file.',
                       _convert(info.format, 'Flatten it'))
    if info.format == 'vmdk' and info.create_type not in policy.vmdk_types:
        return _refuse(
            'vmdk_allowed_types',
            f'VMDK subformat {errors.clean(info.create_type, 24)} is not '
            f'allowed.', _convert('vmdk'))
    return None


def _judge_inside(facts: Facts, declared: str, policy: Policy
                  ) -> Verdict | None:
    """Whether the disk can be brought into the format that it must have."""
    disk_format = 'raw' if declared in _RAW_FORMATS else declared
    inside = facts.content
    as_raw = inside is None or not inside.problem(policy.overlays)
    target = policy.converted_to(disk_format, as_raw)
    if target is None:
        return None
    if facts.content_error is not None:
        return _refuse('qemu-img', 'QEMU cannot read its disk: ' +
                       errors.clean(facts.content_error, 60) + '.',
                       f'Check it: qemu-img check -f {disk_format} OLD')
    if target == 'raw' and inside is not None and not as_raw:
        return _refuse(
            'inside', inside.problem(policy.overlays),
            f'Unpack it: qemu-img convert -f {disk_format} -O raw OLD NEW',
            'Unpack it: convert it to raw.')
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
            f'flavor\'s disk of {_gib(limit)} GiB.', 'Use a larger flavor.')
    return None


def _gib(size: int) -> str:
    return f'{size / (1 << 30):.4g}' if size < 1 << 40 else str(size >> 30)
