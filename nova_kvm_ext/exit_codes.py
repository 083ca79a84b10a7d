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

"""The exit codes of ``nova-kvm-ext``: part of its interface.

``host check`` has its own, which are as severe as what it found.
"""

import enum


class ExitCode(enum.IntEnum):
    """What became of a command; 128 + N where signal N ended it."""

    PASS = 0        # done, and what was looked at is as it should be
    FAIL = 1        # looked at, and it is not as it should be
    USAGE = 2       # the command line or nova.conf is wrong
    HOST = 3        # this host lacks something: libvirt, a tool, space
    NO_BOOT = 4     # image or guest refused, or not up in time
    LEFTOVERS = 5   # all is well, but something could not be taken away
