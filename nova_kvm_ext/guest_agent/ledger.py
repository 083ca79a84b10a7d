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

"""Records guests that may be frozen, before a freeze is sent.

One file for each guest. Only its name, the domain's UUID, is used; its content
is for people. So a truncated file, or one that a person has edited, is still
valid.

The process that freezes a guest holds the lock of its file until the guest is
thawed. The kernel drops the lock when the process dies. So a file without a
lock belongs to a freeze that no process is going to undo.

Only makes files: never talks to libvirt or Nova.
"""

import contextlib
import datetime
import fcntl
import os
import re
import stat
import urllib.parse

_UUID = re.compile(
    r'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}')
_TEXT_BYTES = 200

# Whatever lies there under a guest's name: no link is followed, a FIFO or a
# device does not block.
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Held(Exception):
    """Another program is freezing or thawing this guest right now."""


class Entry:
    """One guest in the ledger, locked by us.

    :ivar uuid: of the domain
    :ivar text: when and why it was entered, as far as that can be read
    """

    def __init__(self, uuid: str, text: str, descriptor: int,
                 path: str) -> None:
        self.uuid = uuid
        self.text = text
        self._descriptor: int | None = descriptor
        self._path = path

    def remove(self) -> None:
        """The guest is not frozen, certainly.

        :raises OSError: the file cannot be removed; it is not locked any more
        """
        if self._descriptor is None:
            return
        try:
            # Before the lock is dropped, so that nobody finds it unlocked.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
                _sync_directory(os.path.dirname(self._path))
        finally:
            self.release()

    def release(self) -> None:
        """Leave it to the program that settles the ledger next."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Ledger:
    """The guests of one service.

    :param state_path: an existing directory that outlives the service
    :param service: the service's own name, ``[DEFAULT] host``: services that
        share a directory do not know each other's domains
    """

    def __init__(self, state_path: str, service: str) -> None:
        # The prefix keeps a host of the name '..' inside.
        self._state_path = state_path
        self._directory = os.path.join(
            state_path, 'kvm-ext-frozen',
            'of-' + urllib.parse.quote(service, safe=''))

    def enter(self, uuid: str, why: str) -> Entry:
        """Write a guest down; it is on the disk when this returns.

        :param why: what is going to be done with the frozen guest
        :raises Held: another program freezes or thaws it
        :raises OSError: it cannot be recorded
        """
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        entry = self._open(uuid, os.O_CREAT)
        assert entry is not None and entry._descriptor is not None
        try:
            self._give_to_service(entry._descriptor)
            now = datetime.datetime.now(datetime.timezone.utc)
            text = f'{now:%Y-%m-%d %H:%M:%S} UTC, {why}\n'.encode()
            os.ftruncate(entry._descriptor, 0)
            os.pwrite(entry._descriptor, text[:_TEXT_BYTES], 0)
            os.fsync(entry._descriptor)
            _sync_directory(self._directory)
        except BaseException:
            with contextlib.suppress(OSError):
                entry.remove()
            raise
        return entry

    def _give_to_service(self, descriptor: int) -> None:
        """What root makes belongs to who owns the state directory.

        A command runs as root and nova-compute does not; it must be able to
        read and to remove what the command wrote, and to write more.
        """
        if os.geteuid() != 0:
            return
        owner = os.stat(self._state_path)
        for target in (os.path.dirname(self._directory), self._directory,
                       descriptor):
            found = os.stat(target)
            if found.st_uid == 0 != owner.st_uid:
                os.chown(target, owner.st_uid, owner.st_gid)

    def holder(self, uuid: str) -> str | None:
        """What is written of a guest that a program holds right now.

        :returns: when and why it was entered; None where nobody holds it
        :raises OSError: the ledger cannot be read
        """
        try:
            entry = self.take(uuid)
        except Held:
            try:
                descriptor = os.open(
                    os.path.join(self._directory, uuid),
                    _FLAGS & ~os.O_RDWR | os.O_RDONLY)
            except FileNotFoundError:
                return None
            with os.fdopen(descriptor, 'rb') as f:
                return f.read(_TEXT_BYTES).decode('utf-8', 'replace').strip()
        if entry is not None:
            entry.release()
        return None

    def written(self) -> dict[str, tuple[float, str]]:
        """What is recorded, without a lock and so in nobody's way.

        :returns: when, in seconds since 1970, and what, by UUID. What cannot
            be read is left out
        """
        found = {}
        with contextlib.suppress(OSError):
            for uuid in self.left_behind():
                with contextlib.suppress(OSError):
                    descriptor = os.open(
                        os.path.join(self._directory, uuid),
                        _FLAGS & ~os.O_RDWR | os.O_RDONLY)
                    with os.fdopen(descriptor, 'rb') as f:
                        text = f.read(_TEXT_BYTES).decode('utf-8', 'replace')
                        found[uuid] = (os.fstat(f.fileno()).st_mtime,
                                       text.strip())
        return found

    def left_behind(self) -> list[str]:
        """UUIDs that are recorded, locked ones among them.

        :raises OSError: the ledger cannot be read
        """
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if _UUID.fullmatch(name))

    def take(self, uuid: str) -> Entry | None:
        """Lock a guest that is recorded.

        :returns: None where it is not recorded (any more)
        :raises Held: another program freezes or thaws it
        :raises OSError: there is not a regular file of ours
        """
        try:
            return self._open(uuid, 0)
        except FileNotFoundError:
            return None

    def _open(self, uuid: str, create: int) -> Entry | None:
        if not _UUID.fullmatch(uuid):
            raise ValueError(f'not a UUID: {uuid!r}')
        path = os.path.join(self._directory, uuid)
        while True:
            descriptor = os.open(path, _FLAGS | create, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(0, 'is not a regular file', path)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Held(uuid) from None
                if os.fstat(descriptor).st_nlink:
                    text = os.pread(descriptor, _TEXT_BYTES, 0)
                    return Entry(uuid, text.decode('utf-8', 'replace'),
                                 descriptor, path)
            except BaseException:
                os.close(descriptor)
                raise
            # Whoever had it locked has removed it meanwhile.
            os.close(descriptor)
            if not create:
                return None


def _sync_directory(path: str) -> None:
    """A name is on the disk only when its directory is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
