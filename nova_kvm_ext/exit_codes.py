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

The first four are those of monitoring plug-ins (Nagios, Icinga), so that a
command can be used as one:
https://nagios-plugins.org/doc/guidelines.html#AEN78
"""

import enum


class ExitCode(enum.IntEnum):
    """What happened to a command; 128 + N where signal N ended it."""

    PASS = 0        # done, and what was looked at is as it should be
    WARN = 1        # it works, but not as it could
    FAIL = 2        # looked at or tried, and it is not as it should be
    UNKNOWN = 3     # not looked at, or it cannot be told; see below
    NO_BOOT = 4     # guest boot: refused, or not up in time
    LEFTOVERS = 5   # guest boot: all is well, but something is left behind

    # Why it is not known. Programs need not tell these apart, people read it
    # on standard error.
    USAGE = UNKNOWN     # the command line or nova.conf is wrong
    HOST = UNKNOWN      # this host lacks something: libvirt, a tool, space
