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

"""A guest that writes to its memory at the pace that it is told.

One boot sector (writer.S), which is there at once and takes next to no time of
the host: a verdict about a guest that is said to write so much a second needs
one that does, also on a host that is busy. What it is told, and how, says
writer.S.
"""

import base64
import os
import select
import struct
import time
from typing import Any

from lxml import etree

_CODE = base64.b64decode("""
+vzqB3wAADHAjtiOwI7QvAB8DwEWaH0PIMAMAQ8iwOsAuwgAjuMk/g8iwOowfAAAuvoDsAHuZg+3
Dvh9ZklmweEUZr8AACAAZGdmiT9mgccAEAAAZjnPcu+6CAZm7Wajbn379P8GjH2DPox9EnIGxwaK
fQAAuv0D7KgBdDe6+APsxwaMfQAAix6KfYiHjn1DiR6KfYP7CHXcxwaKfQAAZqGOfWajcn1moZJ9
ZqN2fbBL7uvBuggGZu1micFmKwZufWYl////AGaJDm59Zvcmcn1mAQZ6fWaD0gBmiw56fWYPrNEU
ZoEmen3//w8AZg+3NnZ9ZjnxdgNmifFmhckPhGD/Zkn3Bnh9AQB0IGZpBn59DWYZAGYFX/NuPGaj
fn1mwegQZvfmZsHoEOsOZqGCfWZAZjnwcgNmMcBmo4J9ZsHgDGb/BoZ9Zosehn1kZ2aJmAAAAAHr
pJAAAAAAAAAAAP//AAAAko8ADwBYfQAAAAAAAAAAAAAAAAAAAAAAAAEAAAAAAAAAAQ==
""")

_MIB_AT = 0x1f8

_TIMER_HZ = 3579545
"""Of the ACPI timer (ACPI specification, "Power Management Timer")."""

_PAGES_OF_MIB = 256

_SECONDS = 120
"""In which it answers, also on a busy host."""

_AGAIN = 4
"""Seconds after which it is told again: it was not there yet."""

# See nova_kvm_ext.host.probe.
_DISK_BYTES = 1024 * 1024


def disk(mib: int) -> bytes:
    """What its disk has.

    :param mib: the guest's memory
    """
    sector = bytearray(_CODE.ljust(510, b'\0') + b'\x55\xaa')
    struct.pack_into('<H', sector, _MIB_AT, mib)
    return bytes(sector).ljust(_DISK_BYTES, b'\0')


def tell(domain: Any, mib: int, mib_per_second: float,
         at_random: bool = False) -> None:
    """Have it write to so much of its memory, again and again.

    :param domain: virDomain, whose first serial line is a pty
    :param mib_per_second: 0 for not at all
    :param at_random: anywhere in it, not to one page after the other
    :raises TimeoutError: it does not answer: it has come to harm
    """
    pages = mib * _PAGES_OF_MIB
    speed = round(mib_per_second * _PAGES_OF_MIB * 2 ** 20 / _TIMER_HZ)
    path = etree.fromstring(domain.XMLDesc(0)).find(
        'devices/serial/source').get('path')
    line = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        while select.select([line], [], [], 0)[0]:
            os.read(line, 1000)
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            os.write(line, struct.pack('<IHH', speed, pages, at_random))
            if select.select([line], [], [], _AGAIN)[0] and (
                    b'K' in os.read(line, 1000)):
                return
        raise TimeoutError(f'The guest has not answered within {_SECONDS} s.')
    finally:
        os.close(line)
