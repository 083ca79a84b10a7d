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

"""What to boot: the command-line options as frozen data.

Pure. The supervisor passes the data to the worker as JSON.
"""

import dataclasses

NO_AGENT = ('this host has no qemu-ga: install qemu-guest-agent to have a '
            'guest agent checked')
"""What is said of a test guest without an agent."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """One boot.

    :ivar config_files: nova.conf files, later ones first in rank
    :ivar settings: text of one more, ranked before them all
    :ivar image: path of an image file, or None for the test guest
    :ivar disk_format: as Glance would declare it, or None to use the bytes
    :ivar properties: image properties
    :ivar extra_specs: of the flavor
    :ivar memory_mb: memory in MiB
    :ivar bridge: a Linux bridge for one interface, or None for no interface
    :ivar timeout: seconds from power-on until the guest must be up
    :ivar expect: text on the console that tells that an image is up
    :ivar cache_dir: where the test guest and the probe guest's answer are
        kept
    :ivar xml_only: print the guest XML and start nothing
    :ivar keep: leave the guest running
    :ivar has_agent: whether the test guest has qemu-ga in it, which the
        supervisor knows when it is built; None for an image
    """

    config_files: list[str]
    settings: str
    image: str | None
    disk_format: str | None
    properties: dict[str, str]
    extra_specs: dict[str, str]
    vcpus: int
    memory_mb: int
    bridge: str | None
    timeout: float
    expect: str
    cache_dir: str
    xml_only: bool
    keep: bool
    has_agent: bool | None = None
