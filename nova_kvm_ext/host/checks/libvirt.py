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

"""libvirt and QEMU.

Codes KVM5xx. Pure.
"""

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import usable
from nova_kvm_ext.cpu import vulnerabilities
from nova_kvm_ext import errors
from nova_kvm_ext.host.checks import causes
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import kvm_proof
from nova_kvm_ext.host import model

GROUP = verdict.Group()

_TOO_OLD = ('Nova itself does not start with it (MIN_LIBVIRT_VERSION and '
            'MIN_QEMU_VERSION of nova.virt.libvirt.driver).')


def _asked(facts: model.HostFacts) -> bool:
    """Whether libvirt has told what emulators it has."""
    return facts.libvirt.offers_kvm is not None


@GROUP.check('KVM501', 'QEMU', proof=(
    'libvirt knows no emulator for this architecture, or the one that it '
    'knows, seen in the same file system, has not the accelerator that '
    'virt_type needs.'))
def _emulator(facts: model.HostFacts) -> verdict.Said:
    emulator = facts.emulator
    package = facts.distribution.qemu_package(facts.cpu.arch)
    install = causes.install(facts, package)
    if _asked(facts) and not facts.libvirt.emulator:
        return verdict.fail(
            f'libvirt knows no QEMU for {facts.cpu.arch}',
            f'{install} && {causes.restart_libvirt(facts)}'
            if facts.place.here else
            'Install QEMU where libvirt runs, and restart libvirt.')
    if _asked(facts) and not facts.place.here:
        version = '.'.join(map(str, facts.libvirt.qemu or ()))
        return verdict.passed(
            f'{facts.libvirt.emulator} {version}, as libvirt says; '
            f'{causes.elsewhere(facts)}')
    if emulator.path is None or (_asked(facts) and emulator.error):
        return verdict.warn(
            f'{facts.libvirt.emulator} of libvirt cannot be run by this '
            f'process: {emulator.error or "it is not there"}'
            if _asked(facts) else
            f'it is not in {" or ".join(facts.distribution.emulators)}, where '
            f'{facts.distribution.name} has it, and libvirt did not say where '
            f'it is'.format(arch=facts.cpu.arch), install)
    if emulator.vouched and emulator.vouched == facts.virt_type:
        version = '.'.join(map(str, facts.libvirt.qemu or ()))
        return verdict.passed(
            f'{emulator.path} {version}, with which libvirt runs guests of '
            f'virt_type {emulator.vouched}')
    again = f'{facts.distribution.reinstall} {package}'
    if emulator.error:
        return verdict.warn(f'{emulator.path} does not run: {emulator.error}',
                            again)
    if not emulator.accelerators:
        return verdict.warn(f'{emulator.path} does not list its accelerators '
                            f'(-accel help)', again)
    version = '.'.join(map(str, emulator.version or ())) or 'unknown version'
    said = (f'{emulator.path} {version}, accelerators '
            f'{", ".join(emulator.accelerators)}')
    if facts.virt_type == 'qemu' and 'tcg' not in emulator.accelerators:
        return causes.weigh(facts, verdict.fail(
            f'{said}: virt_type = qemu needs tcg',
            'Set [kvm_ext] virt_type = kvm.'))
    if 'kvm' not in emulator.accelerators:
        return causes.no_kvm(facts, f'{said}: it is built without kvm',
                             install, files=True)
    return verdict.passed(said)


@GROUP.check('KVM502', 'libvirt', proof=(
    'libvirt does not let this process in, or nothing listens where '
    'connection_uri points. An answer that does not come in time, or a '
    'refusal of an ordinary user who asks, proves nothing.'))
def _libvirt(facts: model.HostFacts) -> verdict.Said:
    libvirt = facts.libvirt
    if libvirt.error:
        said = f'{libvirt.uri}: {libvirt.error}'
        known = errors.explain(libvirt.error)
        if libvirt.hangs:
            return verdict.warn(f'{said}: busy, or it hangs',
                                causes.restart_libvirt(facts))
        if libvirt.version is not None:
            return verdict.warn(f'{libvirt.uri} answers, but tells nothing '
                                f'of QEMU: {libvirt.error}',
                                causes.restart_libvirt(facts))
        denied = 'denied' in libvirt.error or 'authentic' in libvirt.error
        remedy = (known.remedy if known and denied else
                  causes.start_libvirt(facts))
        if denied and not facts.root and not facts.service:
            return verdict.warn(f'{said}: this user may not look', remedy)
        return verdict.fail(said, remedy)
    if libvirt.version is None:
        return verdict.skip(libvirt.unasked)
    return verdict.passed(f'{libvirt.uri} answers; '
                          f'{causes.elsewhere(facts)}')


def _version(facts: model.HostFacts, what: str,
             found: tuple[int, int, int] | None,
             minimum: tuple[int, int, int] | None,
             following: tuple[int, int, int] | None) -> verdict.Said:
    if found is None:
        return verdict.skip(facts.libvirt.unasked or
                            f'{what} did not say (KVM502)')
    said = '.'.join(map(str, found))
    if minimum is None or following is None:
        return verdict.skip(f'{what} {said}; Nova\'s source does not tell '
                            f'what it needs')
    upgrade = f'Upgrade {what}, with a release of the distribution that has '
    if found < minimum:
        least = '.'.join(map(str, minimum))
        return verdict.fail(f'{what} {said} is older than {least}, and Nova '
                            f'does not start with it', f'{upgrade}{least}.')
    if found < following:
        least = '.'.join(map(str, following))
        return verdict.warn(
            f'{what} {said}: this Nova needs '
            f'{".".join(map(str, minimum))}, a later one will need {least}',
            f'{upgrade}{least}, before Nova is upgraded.')
    return verdict.passed(f'{what} {said}')


@GROUP.check('KVM503', 'Version of libvirt', proof=_TOO_OLD)
def _libvirt_version(facts: model.HostFacts) -> verdict.Said:
    return _version(facts, 'libvirt', facts.libvirt.version,
                    facts.nova.libvirt, facts.nova.next_libvirt)


@GROUP.check('KVM504', 'Version of QEMU', proof=_TOO_OLD)
def _qemu_version(facts: model.HostFacts) -> verdict.Said:
    said = _version(facts, 'QEMU',
                    facts.libvirt.qemu or facts.emulator.version,
                    facts.nova.qemu, facts.nova.next_qemu)
    return said if facts.libvirt.qemu else causes.weigh(facts, said)


def _unasked(facts: model.HostFacts) -> str:
    """Why libvirt's answers about QEMU are not there, or ''."""
    if facts.libvirt.error:
        return 'libvirt did not answer (KVM502)'
    if facts.libvirt.unasked.startswith('libvirt was not asked about'):
        return f'{facts.libvirt.unasked} (KVM205)'
    return facts.libvirt.unasked


@GROUP.check('KVM505', 'Machine types', proof=(
    'libvirt\'s capabilities have no machine type for this architecture.'))
def _machines(facts: model.HostFacts) -> verdict.Said:
    unasked = _unasked(facts)
    if unasked:
        return verdict.skip(unasked)
    arch, machines = facts.cpu.arch, facts.libvirt.machines
    if not machines:
        package = facts.distribution.qemu_package(arch)
        return verdict.fail(
            f'libvirt knows no machine type for {arch}',
            f'{causes.install(facts, package)} && '
            f'{causes.restart_libvirt(facts)}' if facts.place.here else
            'Install QEMU where libvirt runs, and restart libvirt.')
    for wanted, machine in facts.options.machine_types:
        if wanted == arch and machine not in machines:
            return verdict.warn(
                f'[libvirt] hw_machine_type has {arch}={machine}, which QEMU '
                f'on this host does not know: only guests whose image names '
                f'another start',
                f'Choose one of {facts.libvirt.emulator} -machine help, or '
                f'remove the option.')
    said = dict(facts.options.machine_types).get(arch)
    return verdict.passed(f'{len(machines)} for {arch}' + (
        f', {said} of hw_machine_type among them' if said else ''))


@GROUP.check('KVM506', 'KVM offered by libvirt', proof=(
    'libvirt refuses guests of the type kvm in words of the table below, or '
    'KVM205 or KVM508 has its proof.'))
def _libvirt_kvm(facts: model.HostFacts) -> verdict.Said:
    unasked = _unasked(facts)
    if unasked:
        return verdict.skip(unasked)
    refused = facts.libvirt.refuses.get('kvm')
    offers = bool(facts.libvirt.offers_kvm) and refused is None
    words = f': {refused}' if refused else ''
    if offers and facts.place.here and not facts.kvm_use.works:
        return causes.no_kvm(
            facts, f'libvirt offers KVM, which is wrong or out of date: '
            f'QEMU\'s user cannot open /dev/kvm ({facts.kvm_use.error})',
            causes.restart_libvirt(facts), files=True)
    if offers and facts.probe.virt_type == 'kvm' and (
            facts.probe.runs is False):
        return causes.no_kvm(
            facts, 'libvirt offers KVM, but a 64-bit guest does not run '
            'under it (KVM508)', _SOFTWARE)
    if offers:
        return verdict.passed('libvirt offers KVM')
    if refused and kvm_proof.find(refused) is None:
        return verdict.warn(f'libvirt does not say whether it offers '
                            f'KVM{words}', causes.restart_libvirt(facts))
    if facts.kvm_use.works and refused is None:
        return verdict.warn(
            'libvirt\'s capabilities list no KVM, and its domain '
            'capabilities have it', causes.restart_libvirt(facts))
    if facts.kvm_use.works:
        return causes.no_kvm(
            facts, f'libvirt offers no KVM, though QEMU\'s user can open '
            f'/dev/kvm: its answer is out of date{words}',
            causes.restart_libvirt(facts))
    return verdict.skip(f'libvirt offers no KVM, and there is none{words}')


_SOFTWARE = 'Set [kvm_ext] virt_type = qemu or auto.'


@GROUP.check('KVM507', 'CPU of guests', proof=(
    'libvirt\'s domain capabilities say that guests cannot have the CPU that '
    'nova.conf gives to every guest.'))
def _guest_cpu(facts: model.HostFacts) -> verdict.Said:
    unasked = _unasked(facts)
    if unasked:
        return verdict.skip(unasked)
    settings = facts.options.settings
    if settings is None or settings.virt_type not in ('kvm', 'qemu', 'auto'):
        return verdict.skip('nova.conf cannot be used (KVM402)')
    if causes.chosen(facts, capabilities.DomainCapabilities())[0] is None:
        return verdict.skip('nova.conf cannot be used (KVM402)')
    if facts.virt_type in facts.libvirt.refuses:
        return verdict.skip(f'libvirt gives no domain capabilities: '
                            f'{facts.libvirt.refuses[facts.virt_type]}')
    choice, refused = causes.chosen(facts, facts.libvirt.domain_capabilities)
    if choice is None:
        return refused
    mode = choice.mode or choose.default_mode(facts.cpu.arch)
    said = (f'{mode}{"".join(f" {m}" for m in choice.models)} under '
            f'{facts.virt_type}')
    if choice.warnings:
        return verdict.warn(f'{said}: {" ".join(choice.warnings)}')
    return verdict.passed(said)


@GROUP.check('KVM508', '64-bit test guest', proof=(
    'A guest was started and did not run, in words of the table below; or it '
    'had seconds of CPU time and did not get through what takes hundredths '
    'of one; or it died twice while the same guest ran in software.'))
def _probe(facts: model.HostFacts) -> verdict.Said:
    probe = facts.probe
    if probe.runs:
        return verdict.passed(probe.reason)
    if probe.runs is None:
        return (verdict.warn(
            f'not known: {probe.reason}', 'Run nova-kvm-ext host check '
            'again when libvirt and the host are less busy.')
            if probe.tried else verdict.skip(probe.reason))
    if probe.virt_type == 'qemu':
        return verdict.fail(probe.reason, f'Read {_LOG}')
    return causes.no_kvm(facts, probe.reason, _SOFTWARE)


# Of libvirt; a second probe at the same time has the number 2.
_LOG = '/var/log/libvirt/qemu/nova-kvm-ext-probe.log'


@GROUP.check('KVM509', 'CPU flaws and guests', proof='')
def _vulnerabilities(facts: model.HostFacts) -> verdict.Said:
    unasked = _unasked(facts)
    if unasked:
        return verdict.skip(unasked)
    if facts.virt_type != 'kvm':
        return verdict.skip('guests here are emulated: flaws of this host\'s '
                            'CPU are its own kernel\'s matter')
    caps = facts.libvirt.domain_capabilities
    host = usable.Host('kvm', caps, facts.cpu_map)
    settings = facts.options.settings
    choice = None if settings is None else causes.chosen(facts, caps)[0]
    if choice is None:
        return verdict.skip('the CPU of guests is not settled (KVM507)')
    guests, available = choice.guests_features(host), host.available
    if choice.mode == 'none':
        default = usable.model_features(
            vulnerabilities.DEFAULT_MODEL, host)
        guests = () if default is None else (default,)
    if not guests or available is None or caps.host_model is None:
        return verdict.skip('libvirt does not tell which features guests have')
    vendor = caps.host_model.vendor
    if vulnerabilities.of_vendor(vendor) is None:
        return verdict.skip(f'QEMU documents no such features for CPUs of '
                            f'{vendor or "no vendor"}')
    found = vulnerabilities.lack(guests, available, vendor, {
        name for name, policy in choice.features if policy == 'disable'})
    if not found.missing:
        return verdict.passed('guests have every feature against them that '
                              'this host can give')
    said = ('guests lack what this host can give: ' +
            ', '.join(map(str, found.missing)))
    remedy = (
        'Set [kvm_ext] cpu_mode to another than none.'
        if choice.mode == 'none' else
        f'Where every host of guests that move has them, set '
        f'{vulnerabilities.option(found.flags, choice.features)}')
    return (verdict.warn(said, remedy) if found.required else
            verdict.Said(verdict.PASS, said, remedy))
