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

"""Keeps the answer of ``qemu-img info`` while an image is the same.

The image's bytes, read again each time, show whether it is the same, never a
time stamp: Nova updates the time stamps of the images in its cache at every
boot, and such an update could hide a write. Decides nothing, and does not
start qemu-img.
"""

from collections.abc import Callable
import hashlib
import json
import os
import stat
import threading

# All of a raw or qcow2 image's answer is made of the file's size, what it
# takes up on disk, and this much of its beginning. QEMU tells raw by the first
# 512 bytes (BLOCK_PROBE_BUF_SIZE). A qcow2's header, header extensions
# and name of a backing file must be in its first cluster (QEMU's
# docs/interop/qcow2.txt), which has this size unless someone chose another.
_HEAD = 64 << 10

# An answer has about 1 KiB.
_MOST = 256

_Identity = tuple[int, int, int, int, bytes]


class Answers:
    """What qemu-img said, by the image it was asked about.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str | None, _Identity], str] = {}
        self._lock = threading.Lock()

    def get(self, path: str, disk_format: str | None,
            ask: Callable[[str, str | None], str]) -> str:
        """What is remembered, or else what asking yields.

        :param ask: gives qemu-img's answer, JSON
        :raises Exception: what asking raises; it is asked again then
        """
        before = _identify(path)
        if before is None:
            return ask(path, disk_format)
        key = path, disk_format, before
        answer = self._answers.get(key)
        if answer is None:
            answer = ask(path, disk_format)
            # If it was replaced meanwhile, nobody knows which one this is of.
            if _made_of_head(answer) and _identify(path) == before:
                with self._lock:
                    self._answers[key] = answer
                    while len(self._answers) > _MOST:
                        del self._answers[next(iter(self._answers))]
        return answer


def _identify(path: str) -> _Identity | None:
    """Which file with which content; None where that cannot be told."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, 'rb', buffering=0) as f:
            status = os.fstat(f.fileno())
            head = f.read(_HEAD)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_blocks,
            hashlib.sha256(head).digest())


def _made_of_head(answer: str) -> bool:
    """Whether nothing further back in the file has a say in an answer.

    What would have Nova refuse the image is never remembered either.
    """
    try:
        said = json.loads(answer)
        if said['format'] == 'raw':
            return True
        return (said['format'] == 'qcow2' and
                said['cluster-size'] <= _HEAD and
                not said.get('encrypted') and
                'snapshots' not in said and
                'backing-filename' not in said and
                not {'data-file', 'bitmaps'} & {
                    *said['format-specific']['data']})
    except (ValueError, TypeError, KeyError):
        return False
