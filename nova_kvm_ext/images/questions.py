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

"""Answers Nova's calls of ``qemu-img info``; the only module that does.

Nova asks about each disk of each guest every minute, with two processes for
each, and at each boot about the base image of each disk. The calling code
takes no parameter for another function. So Nova's function is replaced while
code of ours runs, and only for its thread or greenlet. The answer comes from
the header if that is sufficient (:mod:`nova_kvm_ext.images.headers`), then
from a kept answer (:mod:`nova_kvm_ext.images.answers`), else from qemu-img.
Nova's code uses the answer as before.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import dataclasses
import os
import threading

from nova.privsep import qemu

from nova_kvm_ext.images import answers
from nova_kvm_ext.images import headers


@dataclasses.dataclass(frozen=True)
class _Remembered:
    """Images about each of which qemu-img is asked once, while it is the same.

    :ivar directory: of the images
    """

    directory: str | None = None
    known: answers.Answers | None = None


class _QemuImgInfo:
    """Takes the place of Nova's question to qemu-img."""

    def __init__(self) -> None:
        self._remembered: contextvars.ContextVar[_Remembered | None] = (
            contextvars.ContextVar('remembered', default=None))
        self._lock = threading.Lock()
        self._users = 0

    @contextlib.contextmanager
    def answered(self, remembered: _Remembered) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._novas = qemu.unprivileged_qemu_img_info
                qemu.unprivileged_qemu_img_info = self._ask
            self._users += 1
        token = self._remembered.set(remembered)
        try:
            yield
        finally:
            self._remembered.reset(token)
            with self._lock:
                self._users -= 1
                if not self._users:
                    qemu.unprivileged_qemu_img_info = self._novas

    def _ask(self, path: str, format: str | None = None) -> str:
        remembered = self._remembered.get()
        if remembered is None:
            return self._novas(path, format)
        answer = headers.info(path, format)
        if answer is not None:
            return answer
        if remembered.known is None or (
                os.path.dirname(path) != remembered.directory):
            return self._novas(path, format)
        return remembered.known.get(path, format, self._novas)


_QEMU_IMG_INFO = _QemuImgInfo()


def by_headers() -> contextlib.AbstractContextManager[None]:
    """Have headers answer what they settle."""
    return _QEMU_IMG_INFO.answered(_Remembered())


def remembered(directory: str, known: answers.Answers
               ) -> contextlib.AbstractContextManager[None]:
    """The same, and ask qemu-img once about each image of a directory.

    :param directory: as Nova will have it
    """
    return _QEMU_IMG_INFO.answered(
        _Remembered(os.path.dirname(os.path.join(directory, '')), known))
