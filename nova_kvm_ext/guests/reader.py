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

"""Reads what the guests of this host run with, without waiting for any.

libvirt reports the states of all guests in one call that waits for none of
them (VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT), their live XML, and the state
of its connection to their QEMU (virDomainGetControlInfo). None of these calls
sends a command to QEMU, so a QEMU that hangs delays nothing. Other facts come
from /proc and from the logs that libvirt keeps of each QEMU.

Returns frozen data; the caller passes the connection.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
import dataclasses
import os
import re
import time
from typing import Any

from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import document
from nova_kvm_ext.cpu import reader as cpu_reader
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.guests import drift
from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import pauses
from nova_kvm_ext.guests import reasons
from nova_kvm_ext import live_xml
from nova_kvm_ext.settings import Settings
from nova_kvm_ext.vhost import process
from nova_kvm_ext.vhost import proof

# libvirt include/libvirt/libvirt-domain.h.
_STATS_STATE = 1
_STATS_ACTIVE = 1
_STATS_NOWAIT = 1 << 29
_XML_INACTIVE = 2
_NO_DOMAIN = 42

# Nova's metadata: nova.virt.libvirt.config.NOVA_NS.
_NOVA = '{http://openstack.org/xmlns/libvirt/nova/1.1}'
_SPECS = 1000

_WHAT = 'the domain\'s XML'

# libvirt src/qemu/qemu_domain.c, qemuDomainLogAppendMessage at each start.
_VERSION = re.compile(
    rb'qemu version: (\d{1,3}\.\d{1,3}\.\d{1,3})([^\n,]{0,200})')

_BETWEEN_LOOKS = 0.1
"""Seconds between two looks at a process in uninterruptible sleep."""


def read_guests(connection: Any, frozen: Mapping[str, model.Frozen],
                files: str | None = None, root: str = '/',
                only: str | None = None
                ) -> list[model.Guest]:
    """Every running guest.

    :param connection: libvirt.virConnect, or Nova's proxy of one
    :param frozen: guests that are recorded as frozen, by UUID
    :param files: directory below which libvirt's own files are seen; None
        for ``root``
    :param only: the UUID of the one guest that is wanted
    :raises libvirt.libvirtError: libvirt fails
    """
    found = []
    for domain, stats in connection.getAllDomainStats(
            _STATS_STATE, _STATS_ACTIVE | _STATS_NOWAIT):
        uuid = domain.UUIDString()
        if only not in (None, uuid):
            continue
        guest = model.Guest(
            uuid, errors.clean(domain.name(), 80),
            stats.get('state.state'), frozen=frozen.get(uuid),
            paused=_paused(stats))
        try:
            text = live_xml.read(domain)
            if text is None:
                found.append(dataclasses.replace(
                    guest, control=_control(domain),
                    odd='libvirt waits for an answer of its QEMU'))
                continue
            found.append(dataclasses.replace(
                _with_xml(guest, text), control=_control(domain),
                configured=_configured(domain)))
        except Exception as e:
            code = errors.libvirt_error_code(e)
            if code is None:
                raise
            if code != _NO_DOMAIN:
                # One that libvirt cannot tell of is shown all the same.
                found.append(dataclasses.replace(
                    guest, odd=errors.clean(e)))
    return _with_processes(found, files or root, root)


def _paused(stats: Mapping[str, Any]) -> model.Paused | None:
    if stats.get('state.state') != pauses.PAUSED:
        return None
    reason = reasons.Reason.of(stats.get('state.reason', 0))
    return model.Paused(reason.name.lower(), reason.words)


def _with_xml(guest: model.Guest, text: str) -> model.Guest:
    try:
        # Once, for there may be hundreds.
        xml = document.parse(text, _WHAT)
        element = xml.find('cpu')
        cpu = (definition.CPU() if element is None else
               definition.CPU.from_element(element))
        nics = tuple(proof.nics_of(xml))
        listens = channel.connected_of(xml)
    except (errors.HostError, ValueError) as e:
        return dataclasses.replace(guest, odd=errors.clean(e))
    kind = xml.find('os/type')
    instance = xml.find(f'metadata/{_NOVA}instance')
    return dataclasses.replace(
        guest, domain_type=xml.get('type', ''),
        arch='' if kind is None else errors.clean(kind.get('arch', ''), 40),
        machine='' if kind is None else
        errors.clean(kind.get('machine', ''), 80),
        emulator=xml.findtext('devices/emulator', ''),
        cpu=cpu, nics=nics, channel=listens, of_nova=instance is not None,
        specs=_specs(instance))


def _specs(instance: Any) -> dict[str, str] | None:
    """The flavor's extra specs, where Nova has written them down."""
    specs = None if instance is None else instance.find(
        f'{_NOVA}flavor/{_NOVA}extraSpecs')
    if specs is None:
        return None
    return {spec.get('name', ''): spec.text or ''
            for spec in specs.findall(f'{_NOVA}extraSpec')[:_SPECS]}


def _configured(domain: Any) -> definition.CPU | None:
    """The CPU in the XML of which the live one was made."""
    try:
        return definition.CPU.parse(domain.XMLDesc(_XML_INACTIVE), _WHAT)
    except errors.HostError:
        return None


def _control(domain: Any) -> model.Control | None:
    """How libvirt stands with a guest's QEMU; None where it does not say."""
    try:
        state, _details, milliseconds = domain.controlInfo()
    except Exception as e:
        code = errors.libvirt_error_code(e)
        if code is None or code == _NO_DOMAIN:
            raise
        return None
    return model.Control(state, milliseconds / 1000)


# -- the processes ------------------------------------------------------------

def _with_processes(guests: list[model.Guest], files: str, root: str
                    ) -> list[model.Guest]:
    versions: dict[str, tuple[str | None, str]] = {}

    def log_of(name: str) -> bytes | None:
        # Some MiB, read once and not kept.
        text = process.read_log(name, files)
        versions[name] = _version(text or b'')
        return text

    kernel = process.read_vhost(
        (proof.Running(guest.uuid, guest.name) for guest in guests), root,
        log_of)
    for guest in guests:
        if guest.name not in versions:
            log_of(guest.name)
    proc = os.path.join(root, 'proc')
    seen = [_process(guest, kernel[guest.uuid].pid, proc, files)
            for guest in guests]
    asleep = [at for at, found in enumerate(seen) if found.state == 'D']
    before = {at: _switches(proc, seen[at].pid) for at in asleep}
    if asleep:
        time.sleep(_BETWEEN_LOOKS)
    for at in asleep:
        pid = seen[at].pid
        seen[at] = dataclasses.replace(
            seen[at], stuck=_state(proc, pid) == 'D' and
            before[at] is not None and _switches(proc, pid) == before[at])
    return [dataclasses.replace(
        guest, vhost=kernel[guest.uuid], process=found,
        qemu=versions[guest.name][0], package=versions[guest.name][1])
        for guest, found in zip(guests, seen)]


def _process(guest: model.Guest, pid: int | None, proc: str, files: str
             ) -> model.Process:
    if pid is None:
        return model.Process(why='its QEMU process cannot be seen')
    found = model.Process(pid, _state(proc, pid))
    path = os.path.join(proc, str(pid), 'exe')
    try:
        link = os.readlink(path)
        if link.endswith(' (deleted)'):
            return dataclasses.replace(
                found, replaced=True, why=f'{errors.clean(link, 200)} was '
                f'replaced or removed after the guest started')
        runs = _identity(path)
    except OSError as e:
        return dataclasses.replace(
            found, why=f'this user may not look into QEMU (PID {pid}): '
            f'{e.strerror}')
    # The emulator of the XML may be a script that starts QEMU.
    for today in (guest.emulator, link):
        with contextlib.suppress(OSError):
            if _identity(os.path.join(files, today.lstrip('/'))) == runs:
                return dataclasses.replace(found, replaced=False)
    return dataclasses.replace(
        found, replaced=True, why=f'{errors.clean(link, 200)} is another '
        f'file where libvirt runs')


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _state(proc: str, pid: int | None) -> str | None:
    with contextlib.suppress(OSError, IndexError):
        with open(os.path.join(proc, str(pid), 'stat'), 'rb') as f:
            # The name in parentheses may have any characters.
            return f.read(4096).rpartition(b')')[2].split()[0].decode()
    return None


def _switches(proc: str, pid: int | None) -> int | None:
    """How often a process has left a CPU."""
    with contextlib.suppress(OSError):
        with open(os.path.join(proc, str(pid), 'status')) as f:
            return sum(int(number) for number in re.findall(
                r'^\w*voluntary_ctxt_switches:\s*(\d+)', f.read(),
                re.MULTILINE))
    return None


def _version(log: bytes) -> tuple[str | None, str]:
    """The version of QEMU that libvirt logged at the start, and its package.

    :param log: from libvirt's line about the start on
    """
    found = _VERSION.search(log.partition(b'\n')[0])
    return (None, '') if found is None else (
        found[1].decode(), errors.clean(found[2].decode(errors='replace'),
                                        80))


# -- what they would get today ------------------------------------------------

def read_today(connection: Any, settings: Settings | None,
               guests: Collection[model.Guest], machine: str | None = None
               ) -> model.Today:
    """What guests would get if they were started now.

    What libvirt does not tell is left out.

    :param settings: None where nova.conf cannot be used
    :param machine: ``[libvirt] hw_machine_type`` of this architecture
    """
    arch = os.uname().machine
    emulators, machines = _machines(_quietly(connection.getCapabilities))
    cpus = {}
    for kind in {guest.domain_type for guest in guests} & {'kvm', 'qemu'}:
        if settings is not None:
            cpus[kind] = _cpus(connection, settings, kind, arch, machine, [
                guest for guest in guests if guest.domain_type == kind])
    return model.Today(
        version(connection.getVersion), arch, emulators, machines, settings,
        {kind: found for kind, found in cpus.items() if found is not None})


def version(question: Callable[[], Any]) -> str | None:
    """The answer of a question of libvirt's for a version, as 7.2.22."""
    number = _quietly(question)
    return None if not number else (
        f'{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}')


def _quietly(question: Callable[[], Any]) -> Any:
    """libvirt's answer, or None."""
    try:
        return question()
    except Exception as e:
        if errors.libvirt_error_code(e) is None:
            raise
        return None


def _machines(text: str | None
              ) -> tuple[dict[str, str], dict[str, dict[str, model.Machine]]]:
    """Emulators, and machine types, by architecture.

    https://libvirt.org/formatcaps.html#guest-capabilities
    """
    emulators: dict[str, str] = {}
    machines: dict[str, dict[str, model.Machine]] = {}
    try:
        root = document.parse(text or '<capabilities/>',
                              'libvirt\'s capabilities')
    except errors.HostError:
        return emulators, machines
    for arch in root.findall('guest/arch'):
        name = arch.get('name', '')
        emulators[name] = arch.findtext('emulator', '')
        machines[name] = {
            found.text: model.Machine(
                found.text, found.get('canonical'),
                found.get('deprecated') == 'yes')
            for found in arch.findall('machine') if found.text}
    return emulators, machines


def _cpus(connection: Any, settings: Settings, kind: str, arch: str,
          machine: str | None, guests: Iterable[model.Guest]
          ) -> model.CPUs | None:
    try:
        host = cpu_reader.read_host(connection, kind, arch, machine)
    except errors.HostError:
        return None
    except Exception as e:
        if errors.libvirt_error_code(e) is None:
            raise
        return None
    host = cpu_reader.with_answers(
        connection, host, choose.questions(settings, host))
    try:
        choice = choose.choose(settings, host)
    except errors.InvalidOption as e:
        return model.CPUs(host, None, errors.clean(e))
    asked = {cpu for guest in guests
             for cpu in choose.questions_of_guest(
                 choice, drift.wishes(guest), host)}
    if settings.keep_guest_cpu:
        asked |= {drift.kept_form(guest.cpu) for guest in guests
                  if guest.cpu is not None and drift.is_exact(guest.cpu)}
    return model.CPUs(
        cpu_reader.with_answers(connection, host, asked), choice)
