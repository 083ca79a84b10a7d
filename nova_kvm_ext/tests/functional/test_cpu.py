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

"""CPU knowledge against the real libvirt: comparisons and the command line.

Hosts that differ are made by changing what libvirt keeps of QEMU's answers,
under virt_type = qemu: libvirt then judges guests by the changed host.
"""

import json
import pathlib
import random
import re
import subprocess
import sys

import libvirt
from lxml import etree
import testtools

from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import reader
from nova_kvm_ext.cpu import unshown
from nova_kvm_ext.cpu import usable
from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext.tests.functional import libvirtd

# What a made-up host lacks, in QEMU's names, and a feature by which to tell
# that libvirt took it. QEMU 7.2's TCG is the host that has all of them.
_HOSTS = (
    ('as it is', (), None),
    ('without AVX', ('avx', 'avx2', 'f16c', 'fma', 'vaes'), 'avx'),
    ('without AES', ('aes', 'vaes'), 'aes'),
    ('Penryn', ('avx', 'avx2', 'f16c', 'fma', 'vaes', 'aes', 'pclmulqdq',
                'sse4.2', 'popcnt', 'bmi1', 'bmi2', 'abm', 'movbe', 'xsave',
                'adx', 'rdrand', 'fsgsbase', 'smep', 'smap'), 'popcnt'),
    ('without AMD\'s', ('svm', 'sse4a', '3dnow', '3dnowext', 'npt', 'abm',
                        'lahf-lm', 'cr8legacy'), 'svm'),
    ('with little', ('ssse3', 'sse4.1', 'sse4.2', 'popcnt', 'cx16',
                     'lahf-lm', 'aes', 'xsave', 'avx', 'avx2', 'movbe', 'nx',
                     'mmxext', 'pge', 'mca'), 'nx'),
)
_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>16</memory>
  <os><type>hvm</type></os>{cpu}
</domain>
"""


class PrivateLibvirtTestCase(testtools.TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.private = self.useFixture(libvirtd.PrivateLibvirt())
        # Otherwise libvirt prints each error that is expected here.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)

    def connect(self) -> libvirt.virConnect:
        connection = libvirt.open(self.private.uri)
        self.addCleanup(connection.close)
        return connection

    def host(self) -> usable.Host:
        return reader.read_host(self.connect(), 'qemu', 'x86_64')


class AgreementTest(PrivateLibvirtTestCase):
    """Our comparison says what virConnectCompareHypervisorCPU says."""

    def test_every_guest_on_every_host(self) -> None:
        seed = random.randrange(1 << 32)
        self.addDetail('seed', testtools.content.text_content(str(seed)))
        rng = random.Random(seed)
        self.connect().getDomainCapabilities(None, 'x86_64', None, 'qemu')
        [cache] = [
            path for path in pathlib.Path(self.private.directory).glob(
                'cache/qemu/capabilities/*.xml')
            if 'qemu-system-x86_64<' in path.read_text()]
        kept = cache.read_text()
        answers: dict[bool, int] = {True: 0, False: 0}
        for name, lacking, telling in _HOSTS:
            self.pretend(cache, kept, lacking)
            host = self.host()
            if telling is not None:
                self.assertNotIn(telling, host.available, name)
            for cpu in self.guests(host, rng):
                answers[self.agree(name, host, cpu)] += 1
        # The figures are worth something only where both answers occur.
        self.assertGreater(answers[True], 200, answers)
        self.assertGreater(answers[False], 200, answers)

    def pretend(self, cache: pathlib.Path, kept: str,
                lacking: tuple[str, ...]) -> None:
        """Start libvirt on a host that lacks some features."""
        root = etree.fromstring(kept)
        for feature in root.findall("hostCPU[@type='tcg']/property"):
            if feature.get('name') in lacking:
                feature.set('value', 'false')
        self.private.stop_libvirtd()
        cache.write_bytes(etree.tostring(root))
        self.private.start_libvirtd()

    def guests(self, host: usable.Host, rng: random.Random
               ) -> list[definition.CPU]:
        # libvirt misses some that QEMU gives all the same.
        names = sorted(host.known.feature_names - unshown.NAMES)
        found = [level.cpu for level in levels.ALL]
        for model in host.caps.models:
            plain = definition.CPU('custom', model.name, match='exact')
            available = sorted(host.available)
            missing = compare.compare(plain, host.caps, host.known).missing
            found += [
                plain,
                # What a live domain has: the model less what is missing.
                plain.with_features((n, 'disable') for n in missing),
                plain.with_features(
                    [(n, 'disable') for n in missing] +
                    [(n, 'require') for n in rng.sample(available, 5)]),
                plain.with_features(
                    (n, rng.choice(('require', 'disable', 'force',
                                    'optional', 'forbid')))
                    for n in rng.sample(names, 4))]
        return found

    def agree(self, name: str, host: usable.Host,
              cpu: definition.CPU) -> bool:
        ours = compare.compare(cpu, host.caps, host.known)
        words = ''
        try:
            theirs = self._connection(name).compareHypervisorCPU(
                None, 'x86_64', None, 'qemu', cpu.to_xml(),
                libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE) > 0
        except libvirt.libvirtError as e:
            if e.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
                raise
            theirs, words = False, str(e)
        said = f'{name}: {cpu.to_xml()}: {ours}, libvirt: {words}'
        self.assertIs(theirs, ours.possible, said)
        features = re.search(r'required features: (.*)', words)
        if features is not None:
            self.assertEqual(
                set(features[1].split(', ')), set(ours.missing), said)
        return theirs

    def _connection(self, name: str) -> libvirt.virConnect:
        """One connection for each host: libvirtd was started again."""
        if getattr(self, '_connected', (None,))[0] != name:
            self._connected = (name, self.connect())
        return self._connected[1]


class CommandTest(PrivateLibvirtTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.conf = pathlib.Path(self.private.instances_path) / 'nova.conf'
        self.configure('virt_type = qemu')

    def configure(self, *settings: str) -> None:
        state = self.private.instances_path
        self.conf.write_text('\n'.join((
            '[DEFAULT]', f'state_path = {state}',
            f'instances_path = {state}', '[kvm_ext]', *settings)))

    def run_command(self, *arguments: str, stdin: str = ''
                    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, '-m', 'nova_kvm_ext.cmd.main', *arguments,
             '--connect', self.private.uri, '--config-file', str(self.conf)],
            input=stdin, capture_output=True, text=True, timeout=120)

    def json(self, *arguments: str, code: int = 0, stdin: str = ''):
        done = self.run_command(*arguments, '-f', 'json', stdin=stdin)
        self.assertEqual(code, done.returncode, done.stderr)
        return json.loads(done.stdout)

    def refused(self, code: int, *arguments: str, stdin: str = '') -> str:
        done = self.run_command(*arguments, stdin=stdin)
        self.assertEqual(code, done.returncode, done.stdout)
        return done.stderr

    def test_show(self) -> None:
        found = self.json('cpu', 'show')
        self.assertEqual(('qemu', 'host-model'),
                         (found['virt_type'], found['cpu_mode']))
        self.assertEqual({'host expansion'},
                         {f['origin'] for f in found['features']})

    def test_show_is_what_a_guest_gets(self) -> None:
        """What is shown is what libvirt starts a guest with."""
        for model in ('x86-64-v2', 'x86-64-v2-AES', 'x86-64-v3', 'Nehalem'):
            found = self.json(
                'cpu', 'show', '--extra-spec', f'kvm_ext:cpu_model={model}')
            self.assertEqual(model, found['cpu_model'])
            domain = self.connect().createXML(
                _DOMAIN.format(name='one', cpu=found['xml']),
                libvirt.VIR_DOMAIN_START_PAUSED)
            try:
                live = definition.CPU.parse(domain.XMLDesc())
            finally:
                domain.destroy()
            self.assertEqual('full', live.check)
            shown = {f['name'] for f in found['features']
                     if f['policy'] == 'require'}
            # QEMU adds to each guest the bit that says that it is one.
            self.assertEqual(
                shown | {'hypervisor'},
                live.features_by(reader.read_map()))

    def test_show_refuses(self) -> None:
        said = self.refused(
            ExitCode.FAIL, 'cpu', 'show', '--property',
            'kvm_ext_cpu_model=x86-64-v3')
        self.assertIn('image property kvm_ext_cpu_model = x86-64-v3', said)
        self.assertIn('x86-64-v2', said)
        said = self.refused(
            ExitCode.FAIL, 'cpu', 'show', '--extra-spec',
            'kvm_ext:cpu_model=Nehalem', '--extra-spec',
            'trait:HW_CPU_X86_AVX2=required')
        self.assertIn('HW_CPU_X86_AVX2', said)
        self.configure('virt_type = qemu', 'cpu_mode = host-passthrough')
        self.assertIn('maximum', self.refused(ExitCode.USAGE, 'cpu', 'show'))

    def test_model_list(self) -> None:
        rows = {row['name']: row for row in self.json('cpu', 'model', 'list')}
        self.assertEqual('yes', rows['Nehalem']['usable'])
        self.assertEqual([], rows['Nehalem']['missing'])
        self.assertEqual('no', rows['Haswell']['usable'])
        self.assertIn('pcid', rows['Haswell']['missing'])
        self.assertEqual('yes', rows['x86-64-v3']['usable'])
        self.assertEqual(
            {row['name'] for row in rows.values() if row['usable'] == 'yes'},
            {row['name'] for row in self.json(
                'cpu', 'model', 'list', '--usable')})

    def test_compare(self) -> None:
        domain = self.connect().createXML(
            _DOMAIN.format(name='one', cpu="<cpu mode='host-model'/>"),
            libvirt.VIR_DOMAIN_START_PAUSED)
        self.addCleanup(domain.destroy)
        for name in ('one', domain.UUIDString()):
            self.assertEqual(
                'yes', self.json('cpu', 'compare', name)['possible'])
        file = pathlib.Path(self.private.instances_path) / 'other.xml'
        file.write_text("<cpu match='exact'><model>EPYC-Rome</model></cpu>")
        found = self.json('cpu', 'compare', str(file), code=ExitCode.FAIL)
        self.assertEqual('no', found['possible'])
        self.assertIn('clzero', found['missing'])
        self.assertIn('clzero', found['libvirt'])
        for answer in found['missing']:
            self.assertIn(answer, found['libvirt'])

    def test_compare_what_is_none(self) -> None:
        self.assertIn('no such domain', self.refused(
            ExitCode.USAGE, 'cpu', 'compare', 'nosuch'))
        self.assertIn('not a regular file', self.refused(
            ExitCode.USAGE, 'cpu', 'compare', '/dev/zero'))
        for text in ('', '<cpu', '<a/>', '<cpu><model>\x07</model></cpu>',
                     '<!DOCTYPE a [<!ENTITY b "c">]><cpu/>',
                     ' ' * (5 << 20)):
            self.refused(ExitCode.USAGE, 'cpu', 'compare', '-', stdin=text)

    def test_auto_keeps_its_answer(self) -> None:
        self.configure('virt_type = auto')
        first = self.json('cpu', 'show')
        again = self.json('cpu', 'show')
        self.assertEqual(first['virt_type'], again['virt_type'])
