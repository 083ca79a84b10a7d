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

"""Reads and judges all guests of this host, for commands and for metrics.

Has :mod:`nova_kvm_ext.guests.verdicts` judge, and waits for no guest.
"""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import reader
from nova_kvm_ext.guests import verdicts as judged
from nova_kvm_ext.host import libvirt_place
from nova_kvm_ext.settings import Settings


@dataclasses.dataclass(frozen=True)
class Survey:
    """All running guests, judged.

    :ivar verdicts: by name
    :ivar today: what they would get
    :ivar problem: why nova.conf's part in that is not known, or ''
    :ivar libvirt: its version, as 9.0.0
    """

    verdicts: tuple[judged.Verdict, ...]
    today: model.Today
    problem: str = ''
    libvirt: str | None = None

    def old_qemu(self) -> Sequence[judged.Verdict]:
        """The guests that run another QEMU than they would get."""
        return [found for found in self.verdicts if found.old_qemu.value]

    def old_machine(self) -> Sequence[judged.Verdict]:
        """The guests whose machine type is deprecated or gone."""
        return [found for found in self.verdicts if found.old_machine.value]


def machine_type(nova: Any, arch: str) -> str | None:
    """The machine type that ``[libvirt] hw_machine_type`` gives guests.

    :param nova: nova.conf with Nova's options registered
    """
    for entry in nova.libvirt.hw_machine_type or ():
        name, _, machine = entry.partition('=')
        if name == arch:
            return machine or None
    return None


def look(connection: Any, nova: Any, uri: str, only: str | None = None,
         root: str = '/') -> Survey:
    """Check every running guest.

    :param connection: libvirt.virConnect; one that may read and write, for
        libvirt gives domain capabilities to no other
    :param nova: nova.conf with Nova's options and ours registered
    :param uri: where the connection leads to
    :param only: the UUID of the one guest that is wanted
    :raises libvirt.libvirtError: libvirt fails
    """
    settings, problem = None, ''
    try:
        settings = Settings.from_conf(nova)
    except errors.InvalidOption as e:
        problem = str(e)
    written = ledger.Ledger(str(nova.state_path), str(nova.host)).written()
    guests = reader.read_guests(
        connection, {uuid: model.Frozen(since, errors.clean(text, 200))
                     for uuid, (since, text) in written.items()},
        libvirt_place.files(uri, root), root, only)
    today = reader.read_today(connection, settings, guests,
                              machine_type(nova, os.uname().machine))
    return Survey(tuple(judged.judge_all(guests, today)), today, problem,
                  reader.version(connection.getLibVersion))
