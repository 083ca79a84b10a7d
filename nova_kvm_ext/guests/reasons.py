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

"""Why a guest is paused, as frozen data, and parsing of libvirt's text.

Pure. The paths in it are the host's. :meth:`Pause.words` leaves them out
unless the caller says that no tenant reads the text.
"""

from collections.abc import Iterable
import dataclasses
import datetime
import enum
import re
from typing import Any

from lxml import etree

from nova_kvm_ext import errors

_IO_MESSAGE = re.compile(
    r"I/O error: disk='(?P<disk>[^']*)', index='-?\d+', path='.*', "
    r"timestamp='(?P<when>[^']*)', message='(?P<text>.*)'", re.DOTALL)
"""virDomainObjGetMessagesIOErrorsSrc of libvirt 11.3. A libvirtd of another
language translates the words; then they tell nothing."""

_NO_SPACE_TEXT = 'No space left on device'
"""ENOSPC in the words of QEMU, which is not translated."""


class Reason(enum.Enum):
    """Why libvirt says that a guest is paused (virDomainPausedReason)."""

    def __init__(self, number: int, words: str) -> None:
        self.number = number
        self.words = words

    NOT_KNOWN = 0, 'for a reason that libvirt does not know'
    USER = 1, 'by request (Nova, or virsh suspend)'
    MIGRATION = 2, 'by a migration'
    SAVE = 3, 'while the guest is saved'
    DUMP = 4, 'while the memory is dumped'
    IO_ERROR = 5, 'by an I/O error'
    WATCHDOG = 6, 'by the watchdog device'
    FROM_SNAPSHOT = 7, 'since a snapshot was restored'
    SHUTTING_DOWN = 8, 'while the guest shuts down'
    SNAPSHOT = 9, 'while a snapshot is made'
    CRASHED = 10, 'since the guest crashed'
    STARTING_UP = 11, 'while the guest starts'
    POSTCOPY = 12, 'by a migration in its post-copy phase'
    POSTCOPY_FAILED = 13, 'by a post-copy migration that failed'
    # Since libvirt 9.2; libvirt-python of an older libvirt has no name for it.
    API_ERROR = 14, ('since libvirt could not resume the guest after a '
                     'migration, a snapshot or a save')

    @classmethod
    def of(cls, number: int) -> 'Reason':
        """By libvirt's number; one of a later libvirt is not known."""
        return next((reason for reason in cls if reason.number == number),
                    cls.NOT_KNOWN)


class Cause(enum.Enum):
    """What kind of I/O error paused a guest."""

    NO_SPACE = 'no space'
    OTHER = 'I/O error'
    NOT_KNOWN = 'not known'


class Place(enum.Enum):
    """What a disk is on the host (type of ``<disk>``)."""

    FILE = 'file'
    BLOCK = 'block'
    NETWORK = 'network'
    OTHER = 'other'


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk of a guest's live XML.

    :ivar target: its name in libvirt, ``vda``
    :ivar alias: its name in events
    :ivar source: path on the host, or pool and image of a network disk
    :ivar fixed: whether it is read-only, as that of a configuration drive, or
        shared with other guests
    """

    target: str
    alias: str
    place: Place
    source: str
    fixed: bool = False


@dataclasses.dataclass(frozen=True)
class DiskError:
    """A disk whose error paused the guest.

    :ivar cause: what kind of error
    :ivar disk: None where the XML does not have the disk
    """

    target: str
    cause: Cause
    disk: Disk | None = None

    def words(self, paths: bool) -> str:
        cause = 'an error' if self.cause is Cause.NOT_KNOWN else (
            self.cause.value)
        path = (f' ({errors.clean(self.disk.source)})'
                if paths and self.disk and self.disk.source else '')
        return f'{cause} on disk {errors.clean(self.target, 40)}{path}'


@dataclasses.dataclass(frozen=True)
class Pause:
    """A guest that is paused.

    :ivar reason: as libvirt says
    :ivar disks: those that had errors; only of a guest with an I/O error
    :ivar since: of the last I/O error, None where that is not known
    :ivar unknown: why the disks are not known, '' where they are
    """

    reason: Reason
    disks: tuple[DiskError, ...] = ()
    since: datetime.datetime | None = None
    unknown: str = ''

    @property
    def cause(self) -> Cause | None:
        """What kind of I/O error; None for a pause of another reason.

        No space only where every disk that had an error says so.
        """
        if self.reason is not Reason.IO_ERROR:
            return None
        causes = {error.cause for error in self.disks} or {Cause.NOT_KNOWN}
        for cause in (Cause.OTHER, Cause.NOT_KNOWN):
            if cause in causes:
                return cause
        return Cause.NO_SPACE

    def words(self, paths: bool = False) -> str:
        """For people, without a full stop.

        :param paths: whether with paths of the host; never for tenants
        """
        if self.reason is not Reason.IO_ERROR:
            return f'paused {self.reason.words}'
        details = '; '.join(error.words(paths) for error in self.disks)
        if not details and self.unknown:
            details = f'which disk is not known: {self.unknown}'
        return f'paused {self.reason.words}' + (details and f': {details}')


def disks(domain_xml: str) -> tuple[Disk, ...]:
    """The disks of a guest; an odd one is left out.

    :param domain_xml: what virDomainGetXMLDesc gives for a running domain
    """
    # libvirt wrote it, but the title and metadata in it are others' words.
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    found = []
    try:
        root = etree.fromstring(domain_xml, parser)
    except (etree.XMLSyntaxError, ValueError, TypeError):
        return ()
    for disk in root.iterfind('devices/disk'):
        target, source = disk.find('target'), disk.find('source')
        alias = disk.find('alias')
        if target is None or not target.get('dev'):
            continue
        try:
            place = Place(disk.get('type', ''))
        except ValueError:
            place = Place.OTHER
        attributes: Any = {} if source is None else source.attrib
        found.append(Disk(
            target.get('dev'), '' if alias is None else alias.get('name', ''),
            place, attributes.get('file') or attributes.get('dev') or
            attributes.get('name') or '',
            disk.find('readonly') is not None or
            disk.find('shareable') is not None))
    return tuple(found)


Kept = tuple[Cause, datetime.datetime | None]
"""What libvirt keeps of a disk's last I/O error, with its time if known."""


def from_messages(messages: Iterable[str]) -> dict[str, Kept]:
    """What libvirt keeps of I/O errors, the last of each disk."""
    found: dict[str, Kept] = {}
    for message in messages:
        match = _IO_MESSAGE.fullmatch(message)
        if match is None:
            continue
        try:
            # 2026-11-27 02:22:11.123+0000
            when: datetime.datetime | None = datetime.datetime.fromisoformat(
                match['when'])
        except ValueError:
            when = None
        found[match['disk']] = (
            Cause.NO_SPACE if _NO_SPACE_TEXT in match['text']
            else Cause.OTHER, when)
    return found
