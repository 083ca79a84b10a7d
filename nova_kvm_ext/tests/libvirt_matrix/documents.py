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
"""The documents of libvirt's own tests, and the results that they expect.

Read where they lie, in an unpacked source of libvirt; nothing of them is kept
here. Each becomes a verdict of ours and one of libvirt's:

* ``cputest compare``: each DO_TEST_COMPARE and DO_TEST_UPDATE of
  tests/cputest.c, a host, a CPU, and whether libvirt takes it
* ``cputest baseline``: a baseline that libvirt made of some hosts can run on
  each of them, which libvirt's test asserts
* ``cputest host``: the CPU that libvirt makes of a real host's CPUID has the
  features that are in it, and the signature that libvirt found
* ``cputest self``: a guest with the CPU that a real host gives can run there
* ``domaincaps model``: a model that QEMU can give is accepted by the check of
  nova.conf; by the arithmetic too, where libvirt no longer asks its own about
  such a model
* ``domaincaps host-model``: a guest with host-model can run on its own host
* ``fleet ...``: see :mod:`~nova_kvm_ext.tests.libvirt_matrix.fleets`
* ``domaincaps level``: what is said about a level of x86-64 is what the
  arithmetic says about its CPU
"""

from collections.abc import Iterator
import dataclasses
import pathlib
import re

from lxml import etree

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext.tests.libvirt_matrix import fleets
from nova_kvm_ext.tests.libvirt_matrix import sources
from nova_kvm_ext.tests.libvirt_matrix import verdicts

_ROW = re.compile(r'DO_TEST_(\w+)\(VIR_ARCH_(\w+),\s*([^;]*?)\);')
_ARCHES = {'X86_64': 'x86_64', 'PPC64': 'ppc64', 'AARCH64': 'aarch64'}
_RESULTS = {'IDENTICAL': True, 'SUPERSET': True, 'INCOMPATIBLE': False,
            'ERROR': None}


@dataclasses.dataclass(frozen=True)
class Row:
    """One DO_TEST_... of cputest.c: its kind, architecture and arguments."""

    kind: str
    arch: str
    arguments: tuple[str, ...]


class Source:
    """An unpacked source of libvirt.

    :raises sources.Unavailable: it is none
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.version = sources.version(path)
        self._data = path / 'tests/cputestdata'
        self._capabilities = path / 'tests/domaincapsdata'
        text = (path / 'tests/cputest.c').read_text()
        self.rows = [
            Row(kind, _ARCHES.get(arch, arch), tuple(
                part.strip().strip('"') for part in arguments.split(',')))
            for kind, arch, arguments in _ROW.findall(text)]
        # Since then libvirt takes QEMU's word for a model without features,
        # and no longer compares its own idea of the model with the host.
        self.trusts_usable = 'virQEMUCapsIsCPUUsable' in (
            path / 'src/qemu/qemu_capabilities.c').read_text()
        self.x86_map = cpu_map.parse(
            file.read_bytes()
            for file in sorted((path / 'src/cpu_map').glob('x86_*.xml')))

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return len([*self._data.glob('*.xml'),
                    *self._capabilities.glob('*.xml')])

    def judge(self) -> Iterator[verdicts.Verdict]:
        yield from self._compares()
        yield from self._baselines()
        yield from self._hosts()
        for file in sorted(self._capabilities.glob('*.xml')):
            yield from self._domain_capabilities(file)
        yield from fleets.judge(self)

    def given(self) -> Iterator[tuple[str, definition.CPU]]:
        """What QEMU gave on a real host, by the name of its processor."""
        for file in sorted(self._data.glob('x86_64-cpuid-*-json.xml')):
            name = file.stem.removeprefix(
                'x86_64-cpuid-').removesuffix('-json')
            yield name, self.cpu('x86_64', f'cpuid-{name}-json')

    def cpus(self) -> Iterator[tuple[str, str]]:
        """Every document of an x86 CPU by name, for a real libvirt."""
        for file in sorted(self._data.glob('x86_64-*.xml')):
            root = etree.fromstring(file.read_bytes())
            if root.tag == 'cpu':
                yield (file.stem.removeprefix('x86_64-'),
                       etree.tostring(root, encoding='unicode'))

    def _text(self, arch: str, name: str) -> bytes:
        return (self._data / f'{arch}-{name}.xml').read_bytes()

    def cpu(self, arch: str, name: str) -> definition.CPU:
        return definition.CPU.parse(self._text(arch, name), name)

    def host(self, arch: str, cpu: definition.CPU
             ) -> capabilities.DomainCapabilities:
        """A host whose guests can have all that this CPU has."""
        return capabilities.DomainCapabilities(
            arch=arch, virt_type='kvm', host_model=dataclasses.replace(
                cpu, mode='custom', match='exact'))

    def _compare(self, arch: str, cpu: definition.CPU, host: definition.CPU
                 ) -> compare.Comparison:
        return compare.compare(
            cpu, self.host(arch, host),
            self.x86_map if arch == 'x86_64' else None)

    def _verdict(self, kind: str, name: str, ours: compare.Comparison,
                 theirs: bool | None) -> verdicts.Verdict:
        missing = ' '.join(ours.missing[:12])
        return verdicts.Verdict(
            self.version, kind, name, ours.possible, theirs,
            f'{ours.reason}{missing and ": "}{missing}')

    def _compares(self) -> Iterator[verdicts.Verdict]:
        for row in self.rows:
            if row.kind not in ('COMPARE', 'UPDATE'):
                continue
            host, cpu, result = row.arguments
            if row.kind == 'UPDATE':
                # The guest's CPU once libvirt has updated it for that host.
                cpu = f'{host}+{cpu}'
            theirs = _RESULTS[result.removeprefix('VIR_CPU_COMPARE_')]
            yield self._verdict(
                'cputest compare', f'{row.arch} {host}/{cpu}',
                self._compare(row.arch, self.cpu(row.arch, cpu),
                              self.cpu(row.arch, host)), theirs)

    def _baselines(self) -> Iterator[verdicts.Verdict]:
        for row in self.rows:
            if row.kind == 'CPUID_BASELINE':
                label, *names = row.arguments
                hosts = {name: self.cpu(row.arch, f'cpuid-{name}-json')
                         for name in names}
                result = f'cpuid-baseline-{label}'
            elif row.kind == 'BASELINE' and row.arguments[2] == '0':
                label, flags, _ = row.arguments
                inputs = etree.fromstring(
                    self._text(row.arch, f'baseline-{label}'))
                hosts = {str(number): definition.CPU.from_element(cpu)
                         for number, cpu in enumerate(inputs.findall('cpu'))}
                suffix = ('migratable' if 'MIGRATABLE' in flags else
                          'expanded' if 'EXPAND' in flags else 'result')
                result = f'baseline-{label}-{suffix}'
            else:
                continue
            baseline = self.cpu(row.arch, result)
            for name, host in hosts.items():
                yield self._verdict(
                    'cputest baseline', f'{row.arch} {result} on {name}',
                    self._compare(row.arch, baseline, host), True)

    def _hosts(self) -> Iterator[verdicts.Verdict]:
        for row in self.rows:
            if row.kind != 'CPUID':
                continue
            name, json = row.arguments
            yield self._signature(row.arch, name)
            yield self._expansion(row.arch, name)
            kinds = ['guest', *(['json'] if json != 'JSON_NONE' else [])]
            for kind in kinds:
                cpu = self.cpu(row.arch, f'cpuid-{name}-{kind}')
                yield self._verdict(
                    'cputest self', f'{name}-{kind}',
                    self._compare(row.arch, cpu, cpu), True)

    def _signature(self, arch: str, name: str) -> verdicts.Verdict:
        """The family and model that are read of the host's CPUID."""
        said = dict(re.findall(
            r'^(family|model): +(\d+)',
            (self._data / f'{arch}-cpuid-{name}.sig').read_text(), re.M))
        expected = (int(said['family']), int(said['model']))
        found = cpu_map.signature(_cpuid(self._text(arch, f'cpuid-{name}')))
        return verdicts.Verdict(
            self.version, 'cputest host', f'{name} signature',
            found == expected, True, f'{found}, expected {expected}')

    def _expansion(self, arch: str, name: str) -> verdicts.Verdict:
        """The features that the host's CPU is said to have are there.

        Both ways: those told by CPUID, of a model and by name, are the ones
        whose bits are set.
        """
        cpu = self.cpu(arch, f'cpuid-{name}-host')
        cpuid = _cpuid(self._text(arch, f'cpuid-{name}'))
        told = cpu.features_by(self.x86_map) or frozenset()
        seen = {feature for feature in self.x86_map.features
                if self.x86_map.has_feature(feature, cpuid)}
        wrong = (told & frozenset(self.x86_map.features)) ^ seen
        return verdicts.Verdict(
            self.version, 'cputest host', f'{name} features', not wrong,
            True, f'differ: {" ".join(sorted(wrong))}' if wrong else '')

    def _domain_capabilities(self, file: pathlib.Path
                             ) -> Iterator[verdicts.Verdict]:
        try:
            caps = capabilities.parse(file.read_text())
        except errors.HostError as e:
            yield verdicts.Verdict(
                self.version, 'domaincaps document', file.stem, False, True,
                e.problem)
            return
        yield verdicts.Verdict(
            self.version, 'domaincaps document', file.stem, True, True)
        host = usable.Host(caps.virt_type or 'kvm', caps, self.x86_map)
        if not host.is_x86 or caps.host_model is None:
            return
        yield self._verdict(
            'domaincaps host-model', file.stem,
            compare.compare(caps.host_model, caps, host.known), True)
        for model in caps.usable_models:
            refused = usable.check_model(model.name, host)
            yield verdicts.Verdict(
                self.version, 'domaincaps model',
                f'{file.stem} {model.name} check', refused is None, True,
                '' if refused is None else refused.problem)
            if self.trusts_usable:
                yield self._verdict(
                    'domaincaps model', f'{file.stem} {model.name} compare',
                    compare.compare(definition.CPU(
                        mode='custom', model=model.name, match='exact'),
                        caps, host.known), True)
        for level in levels.ALL:
            theirs = compare.compare(level.cpu, caps, host.known)
            refused = usable.check_model(level.name, host)
            yield verdicts.Verdict(
                self.version, 'domaincaps level',
                f'{file.stem} {level.name}', refused is None,
                theirs.possible, '' if refused is None else refused.problem,
                theirs.reason)


def _cpuid(text: bytes) -> cpu_map.CPUID:
    """The registers of a <cpudata>."""
    found = {}
    for leaf in etree.fromstring(text).iter('cpuid'):
        eax, ebx, ecx, edx = (int(leaf.get(register, '0'), 0)
                              for register in cpu_map.REGISTERS)
        found[int(leaf.get('eax_in'), 0), int(leaf.get('ecx_in', '0'), 0)] = (
            eax, ebx, ecx, edx)
    return found
