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

"""Compares what the guest reports with what its XML promises.

Pure: takes the running domain's XML and the guest's report, returns checks
with their results. The guest's text is hostile input: it is compared and
truncated, never trusted.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import enum

from lxml import etree

from nova_kvm_ext.boot import report
from nova_kvm_ext.boot.spec import NO_AGENT
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.vhost import proof

# Linux takes the kernel image, its page tables and reserved ranges out of
# MemTotal; seen: 14 % of 256 MiB with Debian's cloud kernel. What is missing
# beyond this share was not given.
_MEMORY_SHARE = 0.7
_NAMED_FLAWS = 8

# Names in /proc/cpuinfo of features that every Linux shows there, by libvirt's
# name: those that make the x86-64 levels, and AES. Used where a guest's CPUID
# cannot be read. Linux: arch/x86/include/asm/cpufeatures.h; the levels: x86-64
# psABI, section 3.1.1.
_LINUX_FLAGS = {
    'cx16': 'cx16', 'lahf_lm': 'lahf_lm', 'popcnt': 'popcnt', 'pni': 'pni',
    'ssse3': 'ssse3', 'sse4.1': 'sse4_1', 'sse4.2': 'sse4_2', 'avx': 'avx',
    'avx2': 'avx2', 'bmi1': 'bmi1', 'bmi2': 'bmi2', 'f16c': 'f16c',
    'fma': 'fma', 'abm': 'abm', 'movbe': 'movbe', 'xsave': 'xsave',
    'avx512f': 'avx512f', 'avx512bw': 'avx512bw', 'avx512cd': 'avx512cd',
    'avx512dq': 'avx512dq', 'avx512vl': 'avx512vl', 'aes': 'aes',
}


class Result(enum.StrEnum):
    PASS = 'PASS'
    FAIL = 'FAIL'
    SKIP = 'SKIP'


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    :ivar name: what was checked
    :ivar details: what was promised and what was seen
    """

    name: str
    result: Result
    details: str


@dataclasses.dataclass(frozen=True)
class Interface:
    """A network interface of the XML.

    :ivar driver: the driver name, or None where the XML has none
    """

    mac: str
    net_type: str
    model: str
    driver: str | None


@dataclasses.dataclass(frozen=True)
class Domain:
    """What a running domain's XML says.

    https://libvirt.org/formatdomain.html

    :ivar memory_kib: memory in KiB
    :ivar cpu: the ``<cpu>`` element as text, or None
    """

    virt_type: str
    arch: str
    machine: str
    emulator: str
    vcpus: int
    memory_kib: int
    cpu: str | None
    cpu_mode: str
    cpu_model: str | None
    agent_channel: bool
    interfaces: tuple[Interface, ...]

    @classmethod
    def from_xml(cls, xml: str) -> 'Domain':
        """Parse the XML that libvirt gives for a running domain."""
        root = etree.fromstring(xml)
        cpu = root.find('cpu')
        os_type = root.find('os/type')
        return cls(
            virt_type=root.get('type', ''),
            arch=os_type.get('arch', ''), machine=os_type.get('machine', ''),
            emulator=root.findtext('devices/emulator', ''),
            vcpus=int(root.findtext('vcpu', '0')),
            memory_kib=int(root.findtext('memory', '0')),
            cpu=None if cpu is None else etree.tostring(
                cpu, encoding='unicode', with_tail=False),
            cpu_mode='none' if cpu is None else cpu.get('mode', 'none'),
            cpu_model=None if cpu is None else cpu.findtext('model'),
            agent_channel=any(
                target.get('name') == channel.TARGET_NAME
                for target in root.findall('devices/channel/target')),
            interfaces=tuple(
                Interface(
                    mac=nic.find('mac').get('address'),
                    net_type=nic.get('type', ''),
                    model=_attribute(nic, 'model', 'type') or '',
                    driver=_attribute(nic, 'driver', 'name'))
                for nic in root.findall('devices/interface')))


def _attribute(element: etree._Element, child: str, name: str) -> str | None:
    found = element.find(child)
    return None if found is None else found.get(name)


def promised_features(domain: Domain, host_model: str | None,
                      known: cpu_map.CPUMap | None) -> dict[str, bool]:
    """The CPU features that a guest must have (True) or lack (False).

    :param host_model: what libvirt says host-model is on this host, as a
        ``<cpu>`` element: host-passthrough and maximum, which name no
        feature, promise no less
    """
    if domain.cpu_mode in ('host-passthrough', 'maximum'):
        required = _features(host_model, known)
        promised = {name: True for name, on in required.items() if on}
    else:
        promised = {}
    return promised | _features(domain.cpu, known)


def _features(cpu_xml: str | None,
              known: cpu_map.CPUMap | None) -> dict[str, bool]:
    """The features of a ``<cpu>`` element, those of its model first."""
    if cpu_xml is None:
        return {}
    cpu = etree.fromstring(cpu_xml)
    model = cpu.findtext('model')
    promised = dict.fromkeys(
        known.models.get(model, ()) if known and model else (), True)
    for feature in cpu.findall('feature'):
        promised[feature.get('name')] = feature.get(
            'policy', 'require') not in ('disable', 'forbid')
    return promised


def _check(name: str, passed: bool, details: str) -> Check:
    return Check(name, Result.PASS if passed else Result.FAIL, details)


def check_cpu_model(domain: Domain, seen: report.GuestReport,
                    known: cpu_map.CPUMap | None) -> Check:
    """The CPU's family and model number against those of the named model."""
    says = f'the guest sees {errors.clean(seen.cpu_model_name, 80)}'
    promised = f'{domain.cpu_mode} {domain.cpu_model or ""}'.strip()
    if domain.cpu_model is None:
        return Check('cpu model', Result.SKIP,
                     f'{promised} names no model; {says}')
    signatures = known.signatures.get(domain.cpu_model) if known else None
    signature = cpu_map.signature(seen.cpuid)
    if not signatures or signature is None:
        return Check('cpu model', Result.SKIP,
                     f'{promised} has no signature to compare; {says}')
    return _check(
        'cpu model', signature in signatures,
        f'{promised}; {says} (family {signature[0]}, model {signature[1]})')


def check_cpu_flags(domain: Domain, promised: Mapping[str, bool],
                    seen: report.GuestReport,
                    known: cpu_map.CPUMap | None) -> Check:
    """Every feature promised or excluded against the guest's CPU."""
    compared = 0
    wrong = []
    for name, wanted in sorted(promised.items()):
        has = None if name in cpu_map.OS_DEPENDENT else _has(
            name, seen, known)
        if has is None:
            continue
        compared += 1
        if has != wanted:
            wrong.append(f'{name} is {"missing" if wanted else "there"}')
    if not compared:
        return Check('cpu flags', Result.SKIP,
                     f'{domain.cpu_mode} promises no flag by name')
    required = sum(promised.values())
    details = (f'{required} promised, {len(promised) - required} excluded, '
               f'{compared} compared')
    return _check('cpu flags', not wrong,
                  f'{details}; {", ".join(wrong)}' if wrong else details)


def _has(name: str, seen: report.GuestReport,
         known: cpu_map.CPUMap | None) -> bool | None:
    """Whether the guest's CPU has a feature, None where that can't be told."""
    if seen.cpuid:
        return known.has_feature(name, seen.cpuid) if known else None
    flag = _LINUX_FLAGS.get(name)
    return flag in seen.cpu_flags if flag and seen.cpu_flags else None


def check_vulnerabilities(seen: report.GuestReport) -> Check:
    """What the guest's Linux says about the flaws of its CPU.

    Nothing is promised about them, and much depends on the guest's kernel, so
    this check never fails: a flaw that stays open makes it a SKIP.
    """
    if not seen.vulnerabilities:
        return Check('cpu flaws', Result.SKIP, 'the guest does not tell')
    flaws = seen.vulnerabilities
    open_flaws = sorted(name for name, text in flaws.items()
                        if text.startswith('Vulnerable'))
    mitigated = sum(text.startswith('Mitigation') for text in flaws.values())
    details = (f'of {len(flaws)} that the guest knows, {mitigated} mitigated, '
               f'{len(open_flaws)} open')
    if not open_flaws:
        return Check('cpu flaws', Result.PASS, details)
    more = len(open_flaws) - _NAMED_FLAWS
    return Check('cpu flaws', Result.SKIP, (
        f'{details}: {", ".join(open_flaws[:_NAMED_FLAWS])}' +
        (f' and {more} more' if more > 0 else '')))


def check_vcpus(domain: Domain, seen: report.GuestReport) -> Check:
    return _check('vcpus', seen.cpus == domain.vcpus,
                  f'{domain.vcpus} promised, {seen.cpus} seen')


def check_memory(domain: Domain, seen: report.GuestReport) -> Check:
    promised, got = domain.memory_kib, seen.memory_kib
    return _check(
        'memory', promised * _MEMORY_SHARE <= got <= promised,
        f'{promised // 1024} MiB promised, {got // 1024} MiB left by the '
        f'guest\'s kernel')


def check_agent(domain: Domain, wanted: bool, answer: str | None,
                has_agent: bool | None = None) -> Check:
    """Channel and answer against what the image asks for.

    :param wanted: whether the image says hw_qemu_guest_agent=yes
    :param answer: how the agent answered a ping, or None if it did not
    :param has_agent: whether the guest has an agent in it, None if that is
        not known
    """
    if domain.agent_channel != wanted:
        return _check('guest agent', False,
                      f'the domain has {"a" if domain.agent_channel else "no"}'
                      f' channel, the image asks for '
                      f'{"one" if wanted else "none"}')
    if has_agent is False:
        return Check('guest agent', Result.SKIP,
                     f'the test guest has none, {NO_AGENT}')
    if not wanted:
        return _check('guest agent', True, 'no channel, as the image asks')
    return _check('guest agent', answer is not None,
                  answer or 'the channel is there, the agent does not answer')


def check_nics(domain: Domain,
               inside: tuple[report.Nic, ...] | None) -> list[Check]:
    """Each interface of the XML against the guest's network cards.

    :param inside: the cards, or None where the guest does not tell
    """
    checks = []
    cards = {card.mac.lower(): card for card in inside or ()}
    for nic in domain.interfaces:
        details = (f'{nic.mac}: {nic.model} on {nic.net_type}, driver '
                   f'{nic.driver or "left to libvirt"}')
        card = cards.get(nic.mac.lower())
        if inside is None:
            checks.append(Check('nic', Result.SKIP, details))
        elif card is None:
            checks.append(_check('nic', False,
                                 f'{details}; the guest does not have it'))
        else:
            checks.append(_check(
                'nic', nic.model != 'virtio' or card.driver == 'virtio_net',
                f'{details}; in the guest {errors.clean(card.name, 20)} with '
                f'driver {errors.clean(card.driver, 40)}'))
    return checks


def check_vhost(verdicts: Iterable[proof.Verdict]) -> list[Check]:
    """Each interface that names vhost against what the kernel does."""
    checks = []
    for verdict in verdicts:
        result = Result.SKIP
        if verdict.promised and verdict.uses is not None:
            result = Result.PASS if verdict.uses else Result.FAIL
        checks.append(Check(
            'vhost-net', result, f'{verdict.nic.mac}: {verdict.details}'))
    return checks


def check_all(domain: Domain, wants_agent: bool, agent_answer: str | None,
              seen: report.GuestReport | None, host_model: str | None,
              known: cpu_map.CPUMap | None,
              has_agent: bool | None = None) -> list[Check]:
    """Every check that can be made of what the guest told."""
    checks = []
    if seen is not None:
        checks = [
            check_cpu_model(domain, seen, known),
            check_cpu_flags(
                domain, promised_features(domain, host_model, known),
                seen, known),
            check_vulnerabilities(seen),
            check_vcpus(domain, seen),
            check_memory(domain, seen)]
    checks.append(check_agent(domain, wants_agent, agent_answer, has_agent))
    return checks + check_nics(domain, seen.nics if seen else None)
