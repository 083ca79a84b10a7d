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

"""How many file systems an agent froze, and how many it thawed.

An agent answers a freeze and a thaw with such a number. The two numbers show
whether the guest was frozen all the time, without another command while the
guest is frozen. Nova drops the numbers.
"""

from typing import Any


def number(answer: Any) -> int | None:
    """What libvirt returned as such a number, None where it is none."""
    # What stands for libvirt in Nova's own tests returns anything.
    return (answer if isinstance(answer, int) and
            not isinstance(answer, bool) and answer >= 0 else None)


def stood(frozen: int, thawed: int | None, again: bool = False
          ) -> bool | None:
    """Whether all that was frozen was so until it was thawed.

    QEMU's documentation of guest-fsfreeze-thaw: a number that does not match
    that of the freeze likely means that some file systems were thawed before,
    and have perhaps changed since
    (https://www.qemu.org/docs/master/interop/qemu-ga-ref.html).

    :param frozen: file systems that the freeze counted, at least 1
    :param thawed: those that the thaw counted, None where that is not known
    :param again: whether this was not the first thaw: an earlier one, of
        which the answer was lost, may have thawed them
    :returns: None where it is not known
    """
    if thawed is None or (again and thawed < frozen):
        return None
    return thawed >= frozen
