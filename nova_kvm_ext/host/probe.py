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

"""Whether a 64-bit guest really runs here: starts one and watches it.

/dev/kvm can open and libvirt can offer KVM on hosts where nothing boots
under it: nested, emulated or broken KVM. So the probe starts a tiny guest
through libvirt itself: as the user, with the emulator and in the confinement
of real guests, and without any privilege of this process. The guest is one
boot sector (probe.S): it enters long mode, proves that with a 64-bit register,
counts to 50 million and reports success.

Ways to report success were tried on libvirt 9.0 and QEMU 7.2, machine types pc
and q35:

- A write to the ISA panic device, with on_crash=preserve, is used. The domain
  stays, in the state crashed/panicked, until it is destroyed. This needs no
  file, and does not taint the domain. No failure looks the same: the guest has
  no interrupt handlers, so every fault in it is a reset, which ends the
  transient domain, as the end of QEMU does.
- isa-debug-exit needs qemu:commandline, which taints the domain, and libvirt
  drops QEMU's exit status: success looks like a crash ("shutting down,
  reason=crashed").
- ACPI power-off ends the domain as well, and its port depends on the machine
  type and on the firmware.
- A serial console needs a file that only QEMU's user may read, or a stream,
  which blocks.

Must not import libvirt or Nova: the caller passes the connection, possibly
Nova's proxy of one, and a libvirt error is recognized by its get_error_code
method. Must leave nothing: no domain, no process, no file except libvirt's own
log of the domain, which has QEMU's last messages.
"""

import base64
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import re
import tempfile
import time
from typing import Any
import uuid

from lxml import etree

from nova_kvm_ext import errors
from nova_kvm_ext.host import kvm_proof
from nova_kvm_ext import log

LOG = log.getLogger(__name__)

ITERATIONS = 50_000_000
"""What the guest counts. TCG takes 0.2 s, KVM on hardware a tenth of that,
and emulated KVM at 0.3 million instructions/s minutes."""

# probe.S assembled, without its zero padding and its signature.
_CODE = base64.b64decode("""
+vzqB3wAADHAjtiOwA8BHt58vwAQZjHAuQAMZvOrZscGABADIAAAZscGACADMAAAZscGADCDAAAA
DwEW2HwPIMBmg8gBDyLA6k18CAC4EAAAAI7YjsCO0A8g4IPIIA8i4LgAEAAADyLYuYAAAMAPMg0A
AQAADzAPIMANAAAAgA8iwOqJfAAAGAC4AQAAAEjB4CBIweggg/gBdRS5gPD6Akj/yXX7ZroFBbAB
7vTr/Q8LDx+AAAAAAAAAAAAAAAAA//8AAACazwD//wAAAJLPAAAAAAAAmiAAHwC4fA==
""")
SECTOR = _CODE.ljust(510, b'\0') + b'\x55\xaa'
"""The boot sector, 512 bytes."""

# SeaBIOS reads the boot sector by cylinder, head and sector and finds no
# cylinder on a disk below 16 * 63 sectors ("could not read the boot disk").
_DISK_BYTES = 1024 * 1024

# libvirt/libvirt-domain.h
_START_AUTODESTROY = 2      # VIR_DOMAIN_START_AUTODESTROY
_PAUSED = 3                 # VIR_DOMAIN_PAUSED
_ENDED = frozenset((
    4,                      # VIR_DOMAIN_SHUTDOWN
    5,                      # VIR_DOMAIN_SHUTOFF
    6,                      # VIR_DOMAIN_CRASHED, where not panicked
))
_PANICKED = frozenset((
    (6, 1),     # VIR_DOMAIN_CRASHED, VIR_DOMAIN_CRASHED_PANICKED
    (3, 10),    # VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_CRASHED: on the way
))
_INFO_CPU_TIME = 4          # virDomainInfo.cpuTime, nanoseconds
# libvirt/virterror.h
_NO_DOMAIN = 42             # VIR_ERR_NO_DOMAIN

TIMEOUT = 10.0
"""Seconds that the guest has to count."""

_POLL_SECONDS = 0.05
# A guest that had this share of the time-out in CPU time was not kept from
# counting by a busy host.
_OWN_FAULT = 0.5

_REASON_CHARACTERS = 300
_SAID_CHARACTERS = 8192

_NAME = 'nova-kvm-ext-probe'
_NAMES = (_NAME, *(f'{_NAME}-{number}' for number in range(2, 5)))
"""One name, so that libvirt writes one log; the others for guests that are
probed at the same time by other services or commands on this libvirt."""

# libvirt, src/conf/virdomainobjlist.c: virDomainObjListAddObjLocked and
# virDomainObjListAddLocked.
_NAME_TAKEN = re.compile(
    r'already (exists with uuid|active|being started)')

# The disk, not KVM, is what failed: libvirt or QEMU's user cannot reach it.
_DISK = re.compile(r'Cannot access storage file|Could not open '
                   r'|cannot access directory|No space left on device')
# Nor is it KVM that refuses a CPU that nova.conf asks for: libvirt compares
# it with what QEMU and the host have (src/cpu/cpu_x86.c).
_CPU = re.compile(r"guest CPU doesn't match|CPU is incompatible"
                  r'|CPU (mode|model)\b.*(not supported|[Uu]nknown)'
                  r'|[Uu]nknown CPU model', re.DOTALL)

_PAUSES = (1.0, 3.0)
"""Seconds before the second and the third attempt."""

_XML_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What happened to the probe guest.

    :ivar runs: whether a 64-bit guest runs; None where that is not known,
        because libvirt or the host was too busy to tell
    :ivar reason: one sentence for an operator, printable, at most 600
        characters
    :ivar seconds: how long it ran, 0.0 where it was never started
    :ivar lasting: whether to expect the same until the host changes. False
        for what may pass or is quick to ask again: errors of libvirt, a QEMU
        that died, a guest that got no CPU time
    :ivar suspect: whether the guest was started and then died, hung or was
        paused. The same guest in software tells whether KVM is to blame
    :ivar said: libvirt's own words where it did not start the guest
    """

    runs: bool | None
    reason: str
    seconds: float
    lasting: bool = False
    suspect: bool = False
    said: str = ''


def supported(arch: str) -> bool:
    """Whether the probe can tell anything about guests of this architecture.

    :param arch: libvirt's name of it; the boot sector is x86_64 code
    """
    return arch == 'x86_64'


def run(conn: Any, *, virt_type: str = 'kvm', cpu_xml: str | None = None,
        directory: str | None = None, emulator: str | None = None,
        machine: str | None = None, timeout: float = TIMEOUT) -> ProbeResult:
    """Start the probe guest and wait until it succeeds, fails or is late.

    :param conn: an open virConnect that may write, or a proxy of one
    :param virt_type: libvirt's domain type, ``kvm`` or ``qemu``
    :param cpu_xml: the ``<cpu>`` element of real guests; None for QEMU's
        default CPU
    :param directory: where the boot sector's file goes for as long as the
        guest lives. QEMU's user must be able to reach it, and libvirt must
        see the same directory: not so for the default, the temporary
        directory, in a service with systemd's PrivateTmp or in a container
    :param emulator: path of the QEMU program; None for libvirt's default
    :param machine: machine type; None for libvirt's default
    :param timeout: seconds the guest has, firmware included; what libvirt
        needs to start it does not count
    :raises OSError: the boot sector's file cannot be written
    :raises ValueError: ``cpu_xml`` is not a ``<cpu>`` element
    """
    with _sector_file(directory) as path:
        for name in _NAMES:
            guest_uuid = str(uuid.uuid4())
            xml = _domain_xml(name, guest_uuid, path, virt_type, cpu_xml,
                              emulator, machine)
            with _destroyed_afterwards(conn, guest_uuid, name):
                result = _start_and_watch(conn, xml, name, virt_type.upper(),
                                          timeout)
            if not _NAME_TAKEN.search(result.said):
                break
        return result


def settled_run(conn: Any, *, virt_type: str = 'kvm',
                directories: Sequence[str] = (),
                cpu_xml: str | None = None, **options: Any) -> ProbeResult:
    """Like :func:`run`, tried again as long as nothing is proved.

    A guest that died, hung or was paused twice is compared with the same
    guest in software: where it runs there, it is KVM that does not. Where it
    does not run either, the host or libvirt is in trouble, and nothing is
    known of KVM. Takes a minute at most, and what libvirt needs to start
    five guests.

    :param directories: where the boot sector's file can go, the best first;
        the next one where QEMU or libvirt does not reach it or it is full
    :param options: of :func:`run`
    """
    suspects = 0
    places: list[str | None] = [*directories] or [None]
    for pause in (0.0, *_PAUSES):
        time.sleep(pause)
        result, places = _run_somewhere(
            conn, places, virt_type=virt_type, cpu_xml=cpu_xml, **options)
        if result.runs is None and cpu_xml and _CPU.search(result.said):
            refused = result.reason
            cpu_xml = None
            result, places = _run_somewhere(
                conn, places, virt_type=virt_type, **options)
            result = dataclasses.replace(
                result, lasting=False, reason=_shorten(
                    f'{result.reason}, with QEMU\'s default CPU: {refused}'))
        if result.runs is not None:
            return result
        suspects += result.suspect
        if suspects == 2 and virt_type == 'kvm':
            return _compared(conn, result, places, options)
    return result


def _compared(conn: Any, result: ProbeResult, places: list[Any],
              options: dict[str, Any]) -> ProbeResult:
    """Whether it is KVM that a suspect guest failed by."""
    control, _ = _run_somewhere(conn, places, virt_type='qemu', **options)
    if control.runs:
        return dataclasses.replace(
            result, runs=False, lasting=True, reason=_shorten(
                f'{result.reason}; twice so, while the same guest ran in '
                f'software within {control.seconds:.1f} s'))
    return dataclasses.replace(result, reason=_shorten(
        f'{result.reason}; nor did the same guest run in software'))


def _run_somewhere(conn: Any, places: list[Any], **options: Any
                   ) -> tuple[ProbeResult, list[Any]]:
    """:func:`run` in the first directory that serves, and those left."""
    said = []
    for number, place in enumerate(places):
        try:
            result = run(conn, directory=place, **options)
        except OSError as e:
            said.append(f'{place}: {e.strerror}')
            continue
        if result.runs is None and _DISK.search(result.said):
            said.append(result.reason)
            continue
        return result, places[number:]
    return ProbeResult(None, _shorten(
        f'no directory for the disk of the test guest: {"; ".join(said)}'),
        0.0), places


def _start_and_watch(conn: Any, xml: str, name: str, label: str,
                     timeout: float) -> ProbeResult:
    started: float | None = None
    seconds = 0.0
    try:
        domain = conn.createXML(xml, _START_AUTODESTROY)
        started = time.monotonic()
        while True:
            state, why = domain.state()[:2]
            seconds = time.monotonic() - started
            if (state, why) in _PANICKED:
                return ProbeResult(
                    True,
                    f'a 64-bit guest under {label} counted to 50 million '
                    f'within {seconds:.1f} s',
                    seconds, lasting=True)
            if state in _ENDED:
                return _died(name, label, seconds)
            if seconds >= timeout:
                cpu_seconds = domain.info()[_INFO_CPU_TIME] / 1e9
                return _late(label, state, why, seconds, cpu_seconds)
            time.sleep(_POLL_SECONDS)
    except Exception as e:
        if not is_libvirt_error(e):
            raise
        if started is None:
            return ProbeResult(
                # Anything else may pass: no memory, a lock, a restart.
                None if kvm_proof.find(str(e)) is None else False,
                _shorten(f'libvirt did not start a guest under {label}: {e}'),
                seconds, said=str(e)[-_SAID_CHARACTERS:])
        if errors.libvirt_error_code(e) == _NO_DOMAIN:
            return _died(name, label, seconds)
        return ProbeResult(
            None,
            _shorten(f'libvirt lost a guest under {label} after {seconds:.1f} '
                     f's: {e}'),
            seconds)


def _died(name: str, label: str, seconds: float) -> ProbeResult:
    return ProbeResult(
        # Or something killed it, such as the kernel for its memory.
        None,
        f'QEMU died or the guest reset after {seconds:.1f} s under {label}, '
        'before a 64-bit guest had counted to 50 million; QEMU\'s words are '
        f'in libvirt\'s log of {name}',
        seconds, suspect=True)


def _late(label: str, state: int, why: int, seconds: float,
          cpu_seconds: float) -> ProbeResult:
    lasting = (label == 'KVM' and state != _PAUSED and
               cpu_seconds >= _OWN_FAULT * seconds)
    if state == _PAUSED:
        verdict = f'QEMU stopped it (paused, libvirt\'s reason {why})'
    elif lasting:
        verdict = f'{label} here is emulated or broken'
    else:
        verdict = 'it hangs or the host is too busy to tell'
    return ProbeResult(
        # Half the time on a CPU, for what takes software 0.2 s.
        False if lasting else None,
        f'a 64-bit guest under {label} did not count to 50 million within '
        f'{seconds:.1f} s ({cpu_seconds:.1f} s of CPU time): {verdict}',
        seconds, lasting, suspect=not lasting)


def _shorten(text: str) -> str:
    """One clean line. Its middle is cut, for QEMU gives the cause last."""
    line = errors.clean(text, limit=len(text))
    if len(line) <= _REASON_CHARACTERS:
        return line
    half = (_REASON_CHARACTERS - len(' ... ')) // 2
    return f'{line[:half]} ... {line[-half:]}'


def is_libvirt_error(error: Exception) -> bool:
    return hasattr(error, 'get_error_code')


@contextlib.contextmanager
def _sector_file(directory: str | None) -> Iterator[str]:
    """The boot sector as a file of its own, which QEMU's user may read."""
    descriptor, path = tempfile.mkstemp(
        prefix='nova-kvm-ext-probe-', suffix='.img', dir=directory)
    try:
        with open(descriptor, 'wb') as file:
            file.write(SECTOR)
            file.truncate(_DISK_BYTES)
            os.fchmod(descriptor, 0o644)
        # An absolute path is what libvirt demands.
        yield os.path.abspath(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@contextlib.contextmanager
def _destroyed_afterwards(conn: Any, guest_uuid: str,
                          name: str) -> Iterator[None]:
    """Whatever happens inside, no domain of this UUID survives.

    It is looked up by its UUID because an exception can leave createXML
    after the guest has started, with no domain object in hand.
    """
    try:
        yield
    finally:
        try:
            conn.lookupByUUIDString(guest_uuid).destroy()
        except Exception as e:
            if not is_libvirt_error(e):
                raise
            if errors.libvirt_error_code(e) != _NO_DOMAIN:
                LOG.warning('KVML502 The probe guest %(name)s was not '
                            'destroyed; libvirt does it when this connection '
                            'closes: %(error)s',
                            {'name': name, 'error': errors.clean(e)})


def _domain_xml(name: str, guest_uuid: str, path: str, virt_type: str,
                cpu_xml: str | None, emulator: str | None,
                machine: str | None) -> str:
    """The transient domain: as little of a machine as boots from a disk."""
    domain = etree.Element('domain', type=virt_type)

    def add(parent: Any, tag: str, text: str | None = None,
            **attributes: str) -> Any:
        element = etree.SubElement(parent, tag, attributes)
        element.text = text
        return element

    add(domain, 'name', name)
    add(domain, 'uuid', guest_uuid)
    add(domain, 'memory', '32', unit='MiB')
    add(domain, 'vcpu', '1')
    os_element = add(domain, 'os')
    os_type = add(os_element, 'type', 'hvm', arch='x86_64')
    if machine is not None:
        os_type.set('machine', machine)
    add(os_element, 'boot', dev='hd')
    if cpu_xml is not None:
        domain.append(_cpu_element(cpu_xml))
    # A reset is how the guest fails; a panic is how it succeeds.
    add(domain, 'on_poweroff', 'destroy')
    add(domain, 'on_reboot', 'destroy')
    add(domain, 'on_crash', 'preserve')
    devices = add(domain, 'devices')
    if emulator is not None:
        add(devices, 'emulator', emulator)
    disk = add(devices, 'disk', type='file', device='disk')
    add(disk, 'driver', name='qemu', type='raw')
    add(disk, 'source', file=path)
    add(disk, 'target', dev='vda', bus='virtio')
    add(disk, 'readonly')
    add(devices, 'controller', type='usb', model='none')
    add(devices, 'memballoon', model='none')
    add(devices, 'panic', model='isa')
    return etree.tostring(domain, encoding='unicode')


def _cpu_element(cpu_xml: str) -> Any:
    try:
        element = etree.fromstring(cpu_xml, _XML_PARSER)
    except etree.XMLSyntaxError as e:
        raise ValueError(f'not XML: {errors.clean(e)}') from e
    if element.tag != 'cpu':
        raise ValueError(f'not a <cpu> element: <{element.tag}>')
    return element
