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

"""Reads what CPUs guests of this host can have: libvirt, its CPU map, /proc.

Returns frozen data. Must not import libvirt or Nova: the caller passes the
connection, possibly Nova's proxy of one, and a libvirt error is recognized by
its get_error_code method.
"""

from collections.abc import Iterable
import dataclasses
import functools
import glob
import os
import re
import types
from typing import Any

from lxml import etree

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors

# libvirt include/libvirt/libvirt-domain.h, since 12.5.0:
# VIR_CONNECT_GET_DOMAIN_CAPABILITIES_SUPPORTED_CPU_FEATURES. The older
# libvirt-python that may be installed here does not name it.
# https://libvirt.org/html/libvirt-libvirt-domain.html#virConnectGetDomainCapabilitiesFlags
SUPPORTED_CPU_FEATURES = 1 << 2
_SUPPORTED_SINCE = 12_005_000

# libvirt include/libvirt/libvirt-host.h: VIR_CONNECT_COMPARE_CPU_FAIL_
# INCOMPATIBLE, and virterror.h: VIR_ERR_CPU_INCOMPATIBLE.
_FAIL_INCOMPATIBLE = 1
_CPU_INCOMPATIBLE = 91


def read_map(root: str = '/') -> cpu_map.CPUMap | None:
    """Read libvirt's CPU map for x86.

    :returns: None where libvirt's files are not on this machine, or none of
        them can be read
    """
    files = []
    for path in sorted(glob.glob(
            os.path.join(root, 'usr/share/libvirt/cpu_map/x86_*.xml'))):
        try:
            status = os.stat(path)
        except OSError:
            continue
        files.append((path, status.st_ino, status.st_size,
                      status.st_mtime_ns, status.st_ctime_ns))
    return _parsed_map(tuple(files))


# The driver needs the map twice when it starts; to parse it takes 20 ms.
@functools.lru_cache(1)
def _parsed_map(files: tuple[tuple[str, int, int, int, int], ...]
                ) -> cpu_map.CPUMap | None:
    """The map of files, which are known by their inodes and times, too."""
    documents = []
    for path, *_ in files:
        try:
            with open(path, 'rb') as f:
                documents.append(f.read())
        except OSError:
            continue
    found = cpu_map.parse(documents)
    return found if found.models else None


def read_host(connection: Any, virt_type: str, arch: str,
              machine: str | None = None, emulator: str | None = None,
              root: str = '/', mapped: bool = True) -> usable.Host:
    """Ask libvirt what CPUs guests can have.

    :param connection: libvirt.virConnect, or Nova's proxy of one
    :param machine: machine type; None for libvirt's default
    :param emulator: path of the QEMU program; None for libvirt's default
    :param mapped: whether to read libvirt's CPU map; else
        :func:`with_map` does
    :raises errors.HostError: libvirt's answer is none
    :raises libvirt.libvirtError: there are no such guests on this host
    """
    question = emulator, arch, machine, virt_type
    caps = capabilities.parse(connection.getDomainCapabilities(*question, 0))
    found = usable.Host(virt_type, dataclasses.replace(
        caps, supported=_supported(connection, question)))
    return with_map(found, root) if mapped else found


def with_map(host: usable.Host, root: str = '/') -> usable.Host:
    """The same host, with libvirt's CPU map."""
    return dataclasses.replace(host, x86_map=read_map(root))


def _supported(connection: Any, question: tuple[str | None, ...]
               ) -> frozenset[str]:
    """Features that host-model leaves out and guests can have anyway.

    QEMU 10.1 and later do not show arch-capabilities with -cpu host on AMD,
    for example, and give it to a guest that asks.
    """
    try:
        if connection.getLibVersion() < _SUPPORTED_SINCE:
            return frozenset()
        found = capabilities.parse(connection.getDomainCapabilities(
            *question, SUPPORTED_CPU_FEATURES))
    except Exception as e:
        if (errors.libvirt_error_code(e) is None and
                not isinstance(e, errors.HostError)):
            raise
        return frozenset()
    return found.host_model.required if found.host_model else frozenset()


@dataclasses.dataclass(frozen=True)
class Answer:
    """What libvirt says of a CPU.

    :ivar possible: None where it was not asked, or does not tell
    :ivar words: its own where it does not say yes
    :ivar error: its error number where it does not tell
    """

    possible: bool | None = None
    words: str | None = None
    error: int | None = None


def ask(connection: Any, host: usable.Host, cpu: definition.CPU,
        found: compare.Comparison) -> Answer:
    """libvirt's own answer about exactly this CPU.

    Where it misses features that QEMU gives anyway, it is asked once
    more without them. A host's CPU is no guest's, so libvirt is not asked
    about it.

    :param found: what our own comparison says
    """
    if cpu.model is None or cpu.is_hosts:
        return Answer()
    answer = _compare(connection, host, cpu)
    if answer.possible is False and found.unshown:
        again = _compare(connection, host, cpu.with_features(
            (name, 'optional') for name in found.unshown))
        if again.possible:
            return dataclasses.replace(answer, possible=True)
    return answer


def _compare(connection: Any, host: usable.Host,
             cpu: definition.CPU) -> Answer:
    """See virConnectCompareHypervisorCPU of libvirt."""
    try:
        result = connection.compareHypervisorCPU(
            None, host.caps.arch, None, host.virt_type, cpu.to_xml(),
            _FAIL_INCOMPATIBLE)
    except Exception as e:
        code = errors.libvirt_error_code(e)
        if code is None:
            raise
        if code == _CPU_INCOMPATIBLE:
            return Answer(False, errors.clean(e))
        return Answer(None, errors.clean(e), code)
    # VIR_CPU_COMPARE_INCOMPATIBLE is 0, an error is negative.
    return Answer(result > 0)


def settled(connection: Any, host: usable.Host,
            cpu: definition.CPU) -> tuple[compare.Comparison, Answer]:
    """Whether the host can give a CPU, with libvirt as the judge."""
    found = compare.compare(
        cpu, host.caps, host.known, None if cpu.address_bits is None else
        read_address_bits(connection))
    answer = ask(connection, host, cpu, found)
    return compare.judge(found, answer.possible), answer


def with_answers(connection: Any, host: usable.Host,
                 cpus: Iterable[definition.CPU]) -> usable.Host:
    """The same host, with libvirt's answers about these CPUs."""
    answers = dict(host.answers)
    for cpu in cpus:
        if cpu not in answers:
            found, answer = settled(connection, host, cpu)
            answers[cpu] = (None if answer.possible is None else
                            found.possible)
    return dataclasses.replace(
        host, answers=types.MappingProxyType(answers))


def read_address_bits(connection: Any, root: str = '/') -> int | None:
    """How many bits a physical address of this host has.

    libvirt compares a guest's with the host's (src/qemu/qemu_validate.c,
    qemuValidateDomainDefCpu), which its capabilities name since 9.3.

    :returns: None where nobody tells
    """
    try:
        text = connection.getCapabilities()
        element = etree.fromstring(
            text, etree.XMLParser(resolve_entities=False, no_network=True)
        ).find('host/cpu/maxphysaddr')
        if element is not None:
            return int(element.get('bits', ''))
    except (etree.XMLSyntaxError, ValueError):
        pass
    except Exception as e:
        if errors.libvirt_error_code(e) is None:
            raise
    try:
        with open(os.path.join(root, 'proc/cpuinfo')) as f:
            found = re.search(r'^address sizes\s*: (\d+) bits physical',
                              f.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
