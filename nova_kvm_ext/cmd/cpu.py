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

"""``nova-kvm-ext cpu ...``: what CPUs guests of this host get.

Reads nova.conf and libvirt, calls :mod:`nova_kvm_ext.cpu`, prints. Starts no
guest, except the test guest that decides ``virt_type = auto`` if no result of
an earlier one is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from collections.abc import Sequence
import os
import sys
from typing import Any

from cliff import lister
from cliff import show

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext import words

with lazy.imports():
    import libvirt
    from oslo_config import cfg

    from nova_kvm_ext.cpu import choose
    from nova_kvm_ext.cpu import definition
    from nova_kvm_ext.cpu import document
    from nova_kvm_ext.cpu import levels
    from nova_kvm_ext.cpu import reader
    from nova_kvm_ext.cpu import traits
    from nova_kvm_ext.cpu import unshown
    from nova_kvm_ext.cpu import usable
    from nova_kvm_ext.cpu import vulnerabilities
    from nova_kvm_ext.fleet import export
    from nova_kvm_ext.fleet import files
    from nova_kvm_ext.fleet import this_host
    from nova_kvm_ext.host import virt_type
    from nova_kvm_ext import request
    from nova_kvm_ext import settings as kvm_settings


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition('=')
    if not key or not equals:
        raise argparse.ArgumentTypeError(
            f'{errors.clean(text, 80)!r} is not KEY=VALUE')
    return key, value


class _CPUCommand(base.HostCommand):
    """A command about the CPUs that the configured guests can have."""

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Any]:
        nova = base.read_conf(parsed_args.config_files)
        settings = kvm_settings.Settings.from_conf(nova)
        # libvirt gives domain capabilities to no read-only connection.
        with self.connected(parsed_args, nova) as connection:
            return self.look(parsed_args, nova, settings, connection)

    def look(self, args: argparse.Namespace, nova: cfg.ConfigOpts,
             settings: kvm_settings.Settings, connection: libvirt.virConnect
             ) -> tuple[Sequence[str], Any]:
        raise NotImplementedError

    @staticmethod
    def warn(text: str) -> None:
        print(f'warning: {text}', file=sys.stderr)


def _machine(nova: cfg.ConfigOpts, arch: str) -> str | None:
    """The machine type that ``[libvirt] hw_machine_type`` gives guests."""
    for entry in nova.libvirt.hw_machine_type or ():
        name, _, machine = entry.partition('=')
        if name == arch:
            return machine or None
    return None


def _resolve(nova: cfg.ConfigOpts, settings: kvm_settings.Settings,
             connection: libvirt.virConnect) -> virt_type.VirtType:
    """The virt_type as the driver would settle it, by its kept answer."""
    arch = os.uname().machine

    def probe_kvm() -> tuple[bool | None, str]:
        return virt_type.probe(
            connection, arch,
            choose.as_configured(
                settings, connection.getCPUModelNames(arch)
                if settings.cpu_models else ()),
            cache_file=os.path.join(nova.state_path, 'kvm-ext-probe.json'),
            places=virt_type.directories(nova.instances_path,
                                         nova.state_path))

    return virt_type.resolve(settings, probe_kvm)


def _look(nova: cfg.ConfigOpts, settings: kvm_settings.Settings,
          connection: libvirt.virConnect
          ) -> tuple[virt_type.VirtType, usable.Host]:
    arch = os.uname().machine
    resolved = _resolve(nova, settings, connection)
    host = reader.read_host(
        connection, resolved.value, arch, _machine(nova, arch))
    for entry in host.caps.odd:
        _CPUCommand.warn(f'{entry} in libvirt\'s domain capabilities is not '
                         f'understood and left out')
    return resolved, host


class Show(_CPUCommand, show.ShowOne):
    """Show the CPU that a guest gets on this host.

    Each feature is shown with its origin. By default the command shows the
    guest of a flavor and an image without requests. Use --extra-spec and
    --property to add requests. For maximum and host-passthrough the command
    shows the features of host-model; the guest may have more. The output names
    features of host-model that can differ from what the guest gets and, under
    KVM, features against CPU flaws that the guest lacks although this host
    could give them.

    Exit codes: 0 a guest can have this CPU, 2 the guest is refused, 3 wrong
    command line or configuration, the host lacks something, or libvirt fails.
    """

    COLUMNS = ('virt_type', 'virt_type_reason', 'machine', 'cpu_mode',
               'cpu_model', 'asked_by', 'xml', 'warnings', 'features',
               'can_differ', 'mitigations')
    # Warnings are said on standard error, too.
    ASIDE = ('xml', 'warnings')

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--extra-spec', '--flavor-spec', metavar='KEY=VALUE',
            type=_pair, action='append', default=[], dest='extra_specs',
            help='what if the flavor had this extra spec, for example '
                 'kvm_ext:cpu_model=x86-64-v3 or '
                 'trait:HW_CPU_X86_AVX2=required (repeat for more)')
        parser.add_argument(
            '--property', metavar='KEY=VALUE', type=_pair, action='append',
            default=[], dest='properties',
            help='what if the image had this property, for example '
                 'kvm_ext_cpu_mode=host-model (repeat for more)')
        return parser

    def look(self, args: argparse.Namespace, nova: cfg.ConfigOpts,
             settings: kvm_settings.Settings, connection: libvirt.virConnect
             ) -> tuple[Sequence[str], Sequence[Any]]:
        resolved, host = _look(nova, settings, connection)
        host = reader.with_answers(
            connection, host, choose.questions(settings, host))
        choice = choose.choose(settings, host)
        for warning in choice.warnings:
            self.warn(warning)
        needs = self._needs(args)
        host = reader.with_answers(
            connection, host, choose.questions_of_guest(
                choice, needs.wishes, host))
        try:
            guest = choose.choose_for_guest(
                choice, needs, settings, host, _mapping(args))
        except errors.InvalidRequest as e:
            raise base.Finding(e.problem, e.remedy) from e
        cpu, features = guest.cpu, guest.features(host)
        differ = self._can_differ(guest, features, host)
        lack = self._lack(guest, features, host)
        line = (None if lack is None or not lack.missing else
                vulnerabilities.option(lack.flags, choice.features))
        return self.COLUMNS, (
            resolved.value,
            columns.Text(resolved.reason),
            host.caps.machine, guest.mode, guest.model, guest.said,
            None if cpu is None else columns.Shown(
                xml := cpu.to_xml(), xml.replace('><', '>\n<')),
            list(choice.warnings),
            columns.Shown(
                [{'name': f.name, 'policy': f.policy, 'origin': f.origin,
                  'asked_by': f.asked_by, 'can_differ': differ.get(f.name)}
                 for f in features], self._by_origin(features)),
            columns.Shown(differ, '\n'.join(
                f'{name}: {why}' for name, why in differ.items())),
            self._mitigations(lack, line))

    @staticmethod
    def _mitigations(lack: vulnerabilities.Lack | None, line: str | None
                     ) -> columns.Shown:
        """Which features against CPU flaws the guest lacks, and the remedy."""
        if lack is None:
            return columns.Shown(None, '')
        said = [f'lacks {mitigation}' for mitigation in lack.missing]
        if line is not None:
            said += ['nova.conf that adds it:', line]
        return columns.Shown(
            {'missing': [{'name': m.name, 'against': m.against,
                          'required': m.required} for m in lack.missing],
             'nova_conf': line},
            '\n'.join(said) or 'lacks nothing that this host has')

    @staticmethod
    def _can_differ(guest: choose.GuestChoice,
                    features: Iterable[choose.Feature], host: usable.Host
                    ) -> dict[str, str]:
        """What a guest with host-model may get or not, with the reasons."""
        if guest.mode != 'host-model' or host.caps.host_model is None:
            return {}
        return unshown.can_differ(
            (f.name for f in features), host.caps.host_model.vendor,
            host.virt_type)

    @staticmethod
    def _lack(guest: choose.GuestChoice,
              features: Iterable[choose.Feature], host: usable.Host
              ) -> vulnerabilities.Lack | None:
        """The features against CPU flaws that this guest lacks.

        :returns: None where that is not known, or means nothing: an emulated
            CPU has no such flaws
        """
        has: frozenset[str] | None = frozenset(
            f.name for f in features if f.policy == 'require')
        if guest.mode == 'none':
            has = usable.model_features(vulnerabilities.DEFAULT_MODEL, host)
        if (not has or host.available is None or host.virt_type != 'kvm' or
                host.caps.host_model is None):
            return None
        vendor = host.caps.host_model.vendor
        if vulnerabilities.of_vendor(vendor) is None:
            return None
        return vulnerabilities.lack(
            [has], host.available, vendor,
            {name for name, policy in guest.extra if policy == 'disable'})

    def _needs(self, args: argparse.Namespace) -> choose.GuestNeeds:
        specs, properties = dict(args.extra_specs), dict(args.properties)
        wishes = request.GuestRequest.read(
            specs, {f'image_{name}': value
                    for name, value in properties.items()})
        for unknown in wishes.unknown():
            self.warn(f'{unknown} means nothing to this driver')
        return choose.GuestNeeds(
            wishes, request.required_traits(specs),
            request.required_traits(properties))

    @staticmethod
    def _by_origin(features: Iterable[choose.Feature]) -> str:
        """For people: names of features by where they come from."""
        found: dict[str, list[str]] = {}
        for feature in features:
            origin = feature.origin
            if origin != 'extra flag' and feature.asked_by in (
                    'flavor', 'image'):
                origin += f' ({feature.asked_by})'
            sign = '-' if feature.policy == 'disable' else ''
            found.setdefault(origin, []).append(sign + feature.name)
        return '\n'.join(
            f'{origin}: {" ".join(names)}'
            for origin, names in sorted(found.items()))


def _mapping(args: argparse.Namespace) -> traits.ByFeature:
    """Nova's table of traits; only then, because it takes seconds."""
    if not any(name.startswith('trait')
               for name, _ in args.extra_specs + args.properties):
        return {}
    from nova.virt.libvirt import utils
    return utils.CPU_TRAITS_MAPPING


class Export(_CPUCommand):
    """Print which CPUs guests of this host can have.

    The output is one line of JSON, some 10 KiB, for nova-kvm-ext fleet: the
    CPU part of libvirt's domain capabilities, the versions of libvirt, QEMU,
    kernel and microcode, whether nested virtualization is on, and a digest
    that is the same on hosts whose guests can have the same CPUs.

    Exit codes: 0 printed, 3 wrong command line or configuration, the host
    lacks something, or libvirt fails.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--name', metavar='HOST', default=os.uname().nodename,
            help='the name of this host in the fleet; by default its own')
        return parser

    def look(self, args: argparse.Namespace, nova: cfg.ConfigOpts,
             settings: kvm_settings.Settings, connection: libvirt.virConnect
             ) -> Any:
        _, host = _look(nova, settings, connection)
        print(export.to_json(
            this_host.read(connection, host, args.name)))


class ModelList(_CPUCommand, lister.Lister):
    """List the CPU models and levels that are usable on this host.

    The others are listed with the reason. A model is usable if guests of the
    configured virt_type can have it, as QEMU reports. If libvirt contradicts,
    libvirt's answer counts. Missing features are those that the host lacks. A
    model that lacks a few features can be used without them: see cpu show.

    Exit codes: 0 listed, 3 wrong command line or configuration, the host lacks
    something, or libvirt fails.
    """

    COLUMNS = ('name', 'usable', 'vendor', 'deprecated', 'missing')
    ASIDE = ('deprecated',)
    EMPTY = 'No CPU model is usable by guests of this host.'

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--usable', action='store_true',
            help='only those that guests can have')
        return parser

    def look(self, args: argparse.Namespace, nova: cfg.ConfigOpts,
             settings: kvm_settings.Settings, connection: libvirt.virConnect
             ) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
        _, host = _look(nova, settings, connection)
        host = reader.with_answers(connection, host, (
            cpu for model in host.caps.usable_models
            if (cpu := usable.question(model.name, (), host)) is not None))
        rows = [row for row in (*self._levels(host), *self._models(host))
                if not args.usable or row[1] == 'yes']
        return self.COLUMNS, rows

    @staticmethod
    def _levels(host: usable.Host) -> Iterable[tuple[Any, ...]]:
        available = host.available
        for level in levels.ALL if host.is_x86 else ():
            missing = None if available is None else level.missing(available)
            yield (level.name, 'unknown' if missing is None else
                   'no' if missing else 'yes', None, False,
                   columns.Names(missing))

    @staticmethod
    def _models(host: usable.Host) -> Iterable[tuple[Any, ...]]:
        for model in host.caps.models:
            word, missing = usable.state(model, host)
            yield (model.name, word, model.vendor, model.deprecated,
                   columns.Names(missing))


class Compare(_CPUCommand, show.ShowOne):
    """Check whether this host can run the CPU of a domain or a file.

    The argument is the name or UUID of a domain on this host, or a file; - is
    standard input. The file has the XML of a domain (virsh dumpxml), a <cpu>
    element, or the output of virsh domcapabilities or virsh capabilities. The
    XML of a running domain has its exact CPU, so use the XML from another host
    to check whether the domain can move to this host. From domain
    capabilities, the command takes the CPU of host-model. Capabilities
    describe the CPU of the host itself, which no guest has completely.

    libvirt decides if it can. The missing features are determined with
    libvirt's CPU map.

    Exit codes: 0 this host can run the CPU, 2 it cannot, 3 not known, wrong
    command line, configuration or file, the host lacks something, or libvirt
    fails.
    """

    COLUMNS = ('cpu_mode', 'cpu_model', 'virt_type', 'possible', 'reason',
               'missing', 'libvirt', 'warnings')
    ASIDE = ('warnings',)

    _CODES = {True: ExitCode.PASS, False: ExitCode.FAIL, None: ExitCode.HOST}

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'cpu', metavar='DOMAIN|FILE',
            help='name or UUID of a domain on this host, or a file')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = ExitCode.PASS
        return super().run(parsed_args) or int(self._code)

    def look(self, args: argparse.Namespace, nova: cfg.ConfigOpts,
             settings: kvm_settings.Settings, connection: libvirt.virConnect
             ) -> tuple[Sequence[str], Sequence[Any]]:
        text = self._text(args.cpu, connection)
        try:
            cpu = definition.CPU.parse(text, args.cpu)
            root = document.parse(text, args.cpu)
        except errors.HostError as e:
            raise errors.InvalidRequest(e.problem, e.remedy) from e
        kind, arch = self._guests(root)
        if kind not in virt_type.SUPPORTED:
            kind = _resolve(nova, settings, connection).value
        host = reader.read_host(connection, kind, arch or os.uname().machine)
        found, answer = reader.settled(connection, host, cpu)
        for warning in found.warnings:
            self.warn(warning)
        for entry in cpu.odd:
            self.warn(f'{entry} is not understood')
        self._code = self._CODES[found.possible]
        return self.COLUMNS, (
            cpu.mode, cpu.model, kind,
            words.ANSWERS[found.possible],
            columns.Text(found.reason),
            columns.Names(found.missing, limit=None),
            columns.Text(answer.words), list(found.warnings))

    @staticmethod
    def _guests(root: Any) -> tuple[str | None, str | None]:
        """The virt type and the architecture that a document names."""
        if root.tag == 'domainCapabilities':
            return root.findtext('domain'), root.findtext('arch')
        if root.tag != 'domain':
            return None, None
        os_type = root.find('os/type')
        return root.get('type'), (None if os_type is None else
                                  os_type.get('arch'))

    @staticmethod
    def _text(name: str, connection: libvirt.virConnect) -> str | bytes:
        if name == '-':
            return sys.stdin.buffer.read(document.MAX_BYTES + 1)
        if '/' in name or os.path.isfile(name):
            return files.read_file(name)
        try:
            try:
                domain = connection.lookupByUUIDString(name)
            except libvirt.libvirtError:
                domain = connection.lookupByName(name)
            return domain.XMLDesc()
        except libvirt.libvirtError as e:
            if e.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            raise errors.InvalidRequest(
                f'{errors.clean(name, 80)}: there is no such domain on this '
                f'host, and no such file.',
                'virsh list --all has the domains.') from e
