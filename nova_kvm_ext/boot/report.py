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

"""The report that the test guest prints on its console.

Each of its lines starts with '@nke '. After 'begin=1' (the version of the
format) come lines 'key=value', then 'end lines=N', where N is the number of
lines between:

    kernel, cpus (online), cpu.vendor, cpu.model_name, cpu.flags, memory_kib,
    nic.N.name, nic.N.mac, nic.N.driver, disk.NAME.bytes,
    cpuid (LEAF:SUBLEAF:EAX:EBX:ECX:EDX in hex, repeated),
    vulnerability.NAME (Linux's text about a CPU vulnerability),
    agent (started, no-channel or no-binary)

A console also has output of firmware, boot loader and kernel before, between
and after these lines. The user of the guest controls this text. All values
taken from it are limited in size and free of control characters, and no text
makes the parser raise an exception.

Pure: standard library only, and no I/O.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import re

# Several times what an honest guest needs of each.
_MAX_CONSOLE = 1024 * 1024
_MAX_LINE = 8192
_MAX_TEXT = 128
_MAX_FLAGS = 1024
_MAX_LINES = 1024
_MAX_CPUID = 512
_MAX_DEVICES = 64
_MAX_VULNERABILITIES = 64
# Linux 6.12 has 150 characters to say of spectre_v2.
_MAX_VULNERABILITY = 256

_PREFIX = '@nke '
_BEGIN = 'begin=1'
_END = re.compile(r'end lines=([0-9]{1,6})')
_PAIR = re.compile(r'([^ =]{1,64})=(.*)')
_NIC = re.compile(r'nic\.([0-9]{1,3})\.(name|mac|driver)')
_DISK = re.compile(r'disk\.([A-Za-z0-9_!.-]{1,32})\.bytes')
_VULNERABILITY = re.compile(r'vulnerability\.([a-z0-9_]{1,40})')
_CPUID = re.compile(r':'.join([r'([0-9a-f]{1,8})'] * 6))
_NUMBER = re.compile(r'[0-9]{1,18}')
_UNPRINTABLE = re.compile(r'[^\x20-\x7e]')


@dataclasses.dataclass(frozen=True)
class Nic:
    """A network interface that has a device behind it.

    :ivar name: the guest's name for it
    :ivar mac: as the guest's kernel writes it
    :ivar driver: the guest's driver, virtio_net for one; '' without any
    """

    name: str
    mac: str
    driver: str


@dataclasses.dataclass(frozen=True)
class GuestReport:
    """What a guest says of itself; it may lie, but not at length.

    What the guest left out or garbled is '' or 0 or empty.

    :ivar kernel: version, as `uname -r` says it
    :ivar cpus: CPUs online
    :ivar cpu_vendor: such as GenuineIntel
    :ivar cpu_model_name: of the first CPU
    :ivar cpu_flags: of the first CPU, in Linux's names
    :ivar memory_kib: what the kernel has to give, in KiB; less than the
        guest was given
    :ivar nics: in the guest's order; None where it does not tell
    :ivar disks: name -> size in bytes
    :ivar cpuid: (leaf, sub-leaf) -> (EAX, EBX, ECX, EDX) of the first CPU;
        only leaves that the CPU has
    :ivar vulnerabilities: what Linux says about each flaw of the CPU, by the
        name of the flaw's file in /sys/devices/system/cpu/vulnerabilities:
        ``Not affected``, ``Mitigation: ...`` or ``Vulnerable...``
    :ivar agent: 'started', 'no-channel', 'no-binary' or ''
    """

    kernel: str
    cpus: int
    cpu_vendor: str
    cpu_model_name: str
    cpu_flags: frozenset[str]
    memory_kib: int
    nics: tuple[Nic, ...] | None
    disks: Mapping[str, int]
    cpuid: Mapping[tuple[int, int], tuple[int, int, int, int]]
    agent: str
    vulnerabilities: Mapping[str, str] = dataclasses.field(
        default_factory=dict)


def parse(console: str) -> GuestReport | None:
    """Find the newest complete report in a console's text.

    :param console: the text; only its last 1 Mi characters are checked
    :returns: the report, or None until one has come to its end with all the
        lines it says it has
    """
    newest = None
    pairs: list[tuple[str, str]] | None = None
    for line in _report_lines(console):
        if line == _BEGIN:
            pairs = []
        elif pairs is None:
            continue
        elif end := _END.fullmatch(line):
            if int(end[1]) == len(pairs):
                newest = pairs
            pairs = None
        elif pair := _PAIR.fullmatch(line):
            pairs.append((pair[1], pair[2]))
            if len(pairs) > _MAX_LINES:
                pairs = None
    return None if newest is None else _report(newest)


def from_proc(cpuinfo: str, meminfo: str,
              vulnerabilities: Mapping[str, str] | None = None
              ) -> GuestReport | None:
    """What /proc and /sys tell of a guest that prints no report.

    :param cpuinfo: text of the guest's /proc/cpuinfo
    :param meminfo: text of the guest's /proc/meminfo
    :param vulnerabilities: text of files in
        /sys/devices/system/cpu/vulnerabilities by name
    :returns: None where the text is not of an x86 Linux
    """
    cpus = re.findall(r'^processor\s*:', cpuinfo, re.MULTILINE)
    if not cpus:
        return None
    values = {'cpus': str(len(cpus))}
    for key, text, pattern in (
            ('cpu.vendor', cpuinfo, r'^vendor_id\s*: (.*)$'),
            ('cpu.model_name', cpuinfo, r'^model name\s*: (.*)$'),
            ('cpu.flags', cpuinfo, r'^flags\s*: (.*)$'),
            ('memory_kib', meminfo, r'^MemTotal:\s+([0-9]+) kB$')):
        if found := re.search(pattern, text, re.MULTILINE):
            values[key] = _UNPRINTABLE.sub('', found[1][:_MAX_LINE])
    for name, text in (vulnerabilities or {}).items():
        values[f'vulnerability.{name}'] = _UNPRINTABLE.sub(
            '', text[:_MAX_LINE])
    return dataclasses.replace(_report(list(values.items())), nics=None)


def _report_lines(console: str) -> Iterable[str]:
    for line in re.split(r'[\r\n]+', console[-_MAX_CONSOLE:]):
        # Something else's unfinished line may stand before the prefix.
        _, prefix, rest = line[:_MAX_LINE].rpartition(_PREFIX)
        if prefix:
            yield _UNPRINTABLE.sub('', rest)


def _report(pairs: list[tuple[str, str]]) -> GuestReport:
    values = dict(pairs)
    return GuestReport(
        kernel=_text(values, 'kernel'),
        cpus=_number(values, 'cpus'),
        cpu_vendor=_text(values, 'cpu.vendor'),
        cpu_model_name=_text(values, 'cpu.model_name'),
        cpu_flags=frozenset(
            flag[:_MAX_TEXT]
            for flag in values.get('cpu.flags', '').split()[:_MAX_FLAGS]),
        memory_kib=_number(values, 'memory_kib'),
        nics=_nics(values),
        disks=_disks(values),
        cpuid=_cpuid(value for key, value in pairs if key == 'cpuid'),
        agent=_text(values, 'agent'),
        vulnerabilities=_vulnerabilities(values))


def _text(values: Mapping[str, str], key: str) -> str:
    return values.get(key, '').strip()[:_MAX_TEXT]


def _number(values: Mapping[str, str], key: str) -> int:
    value = values.get(key, '')
    return int(value) if _NUMBER.fullmatch(value) else 0


def _nics(values: Mapping[str, str]) -> tuple[Nic, ...]:
    found = {int(match[1]) for key in values
             if (match := _NIC.fullmatch(key))}
    return tuple(
        Nic(name=_text(values, f'nic.{number}.name'),
            mac=_text(values, f'nic.{number}.mac'),
            driver=_text(values, f'nic.{number}.driver'))
        for number in sorted(found)[:_MAX_DEVICES])


def _disks(values: Mapping[str, str]) -> Mapping[str, int]:
    found = {match[1]: _number(values, key) for key in values
             if (match := _DISK.fullmatch(key))}
    return dict(list(found.items())[:_MAX_DEVICES])


def _vulnerabilities(values: Mapping[str, str]) -> Mapping[str, str]:
    found = {match[1]: value.strip()[:_MAX_VULNERABILITY]
             for key, value in values.items()
             if (match := _VULNERABILITY.fullmatch(key))}
    return dict(list(found.items())[:_MAX_VULNERABILITIES])


def _cpuid(
    lines: Iterable[str]
) -> Mapping[tuple[int, int], tuple[int, int, int, int]]:
    found: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    for line in lines:
        if (match := _CPUID.fullmatch(line)) and len(found) < _MAX_CPUID:
            leaf, sub, eax, ebx, ecx, edx = (
                int(word, 16) for word in match.groups())
            found[leaf, sub] = (eax, ebx, ecx, edx)
    return found
