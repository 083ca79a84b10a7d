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

"""The XML of a running guest, without a wait for its QEMU.

A libvirt newer than 9.0 does not give the XML of a guest while another call
waits for the guest's QEMU: the call for the XML waits too, and fails after
30 s (seen on 11.3.0; 9.0.0 gives the XML at once). libvirt reports the state
of its connection to QEMU without QEMU, and without a wait.
"""

import time
from typing import Any

XML_WAITS = (9, 1, 0)
"""The libvirt from which on the XML may have to wait. The releases between
9.0.0 and 11.3.0 were not tried."""

JOB, OCCUPIED = 1, 2
"""VIR_DOMAIN_CONTROL_JOB and OCCUPIED of virDomainControlState, see
https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainControlState"""

PATIENCE = 1.0
"""Seconds that QEMU may owe libvirt an answer. Those of a guest that is well
take milliseconds."""

_POLL = 0.05

_LOOKS = 40
"""How often it is looked at most: for two seconds."""


def read(domain: Any, flags: int = 0) -> str | None:
    """The XML of a running guest, without a wait for its QEMU.

    :param domain: libvirt.virDomain, or Nova's proxy of one
    :param flags: of virDomainGetXMLDesc
    :returns: None where libvirt would wait for QEMU
    :raises libvirt.libvirtError: libvirt fails
    """
    return None if owes(domain) else domain.XMLDesc(flags)


def owes(domain: Any) -> bool:
    """Whether QEMU has owed libvirt an answer for as long as PATIENCE.

    During a migration, which is a job, libvirt gives the XML.
    """
    # What stands for libvirt in Nova's own tests has no such call.
    ask = getattr(domain, 'controlInfo', None)
    if ask is None:
        return False
    # A QEMU that gets one request after the other answers them.
    for _ in range(_LOOKS):
        try:
            state, _, milliseconds = ask(0)
        except Exception as e:
            # The guest has ended meanwhile, or is not known: the call for the
            # XML tells. Only libvirt's own error: any other would be our
            # defect.
            if not hasattr(e, 'get_error_code'):
                raise
            return False
        if state != OCCUPIED or not _waits(domain.connect()):
            return False
        if milliseconds >= PATIENCE * 1000:
            return True
        time.sleep(_POLL)
    return False


def _waits(connection: Any) -> bool:
    major, minor, release = XML_WAITS
    return connection.getLibVersion() >= (
        major * 1_000_000 + minor * 1_000 + release)
