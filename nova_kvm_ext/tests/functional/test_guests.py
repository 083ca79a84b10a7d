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

"""Guests that hang, are outdated, paused and frozen: what is seen of them.

On a real libvirt, whose QEMU is replaced while a guest runs, and with a real
Prometheus and node_exporter where they are installed.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any
import urllib.parse
import urllib.request
import uuid

import fixtures
import libvirt
from oslotest import base

from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.tests.functional import libvirtd

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.dirname(os.path.abspath(__file__)))))
QEMU = '/usr/bin/qemu-system-x86_64'

_XML = """
<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid>
<metadata><nova:instance
 xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>
<nova:flavor name='m1.nano'><nova:extraSpecs/></nova:flavor></nova:instance>
</metadata>
<memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='{machine}'>hvm</type></os>
<cpu mode='custom' match='exact'><model>{model}</model></cpu>
<devices><emulator>{emulator}</emulator>
<controller type='usb' model='none'/><memballoon model='none'/>
<channel type='unix'>
<target type='virtio' name='org.qemu.guest_agent.0'/></channel>
</devices></domain>"""


class GuestsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.libvirt = self.useFixture(libvirtd.PrivateLibvirt())
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.config = os.path.join(self.directory, 'nova.conf')
        with open(self.config, 'w') as f:
            f.write(f'[DEFAULT]\nstate_path = {self.directory}\nhost = here\n'
                    f'[libvirt]\nvirt_type = qemu\n'
                    f'[kvm_ext]\ncpu_mode = custom\ncpu_model = qemu64\n'
                    f'image_cpu_modes =\n')
        self.connection = libvirt.open(self.libvirt.uri)
        self.addCleanup(self.connection.close)

    def start(self, name: str, emulator: str = QEMU, machine: str = 'q35',
              model: str = 'qemu64') -> libvirt.virDomain:
        domain = self.connection.defineXML(_XML.format(
            name=name, uuid=uuid.uuid4(), emulator=emulator,
            machine=machine, model=model))
        # Standing still costs nothing.
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        return domain

    def a_qemu_of_its_own(self) -> str:
        """A copy that finds its modules and firmware as the one beside it."""
        top = os.path.join(self.libvirt.instances_path, 'qemu')
        os.makedirs(os.path.join(top, 'bin'))
        for name in ('lib', 'share'):
            os.symlink(f'/usr/{name}', os.path.join(top, name))
        return shutil.copy(QEMU, os.path.join(top, 'bin'))

    def stop_process(self, domain: libvirt.virDomain) -> None:
        for pid in self.libvirt.processes():
            with open(f'/proc/{pid}/cmdline') as f:
                if domain.UUIDString() in f.read():
                    os.kill(pid, signal.SIGSTOP)
                    self.addCleanup(self._go_on, pid)

    def resume(self, uuid: str) -> None:
        """A call that waits for QEMU, on a connection of its own."""
        connection = libvirt.open(self.libvirt.uri)
        with contextlib.suppress(libvirt.libvirtError):
            connection.lookupByUUIDString(uuid).resume()
        connection.close()

    @staticmethod
    def _go_on(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def run_command(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, '-m', 'nova_kvm_ext.cmd.main', *arguments,
             '--config-file', self.config, '--connect', self.libvirt.uri],
            capture_output=True, text=True, timeout=120)
        self.addDetail(arguments[0], libvirtd.content.text_content(
            done.stdout + done.stderr))
        return done.returncode, done.stdout

    def listed(self, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
        code, out = self.run_command('guest', 'list', '-f', 'json', *options)
        return code, {one['name']: one for one in json.loads(out)}

    def test_what_they_run_with(self):
        old_qemu = self.a_qemu_of_its_own()
        self.start('well')
        self.start('old', emulator=old_qemu)
        self.start('drifts', model='Nehalem')
        frozen = self.start('frozen')
        hung = [self.start(f'hung{number}') for number in range(3)]
        os.unlink(old_qemu)
        for domain in hung:
            self.stop_process(domain)
        entry = ledger.Ledger(self.directory, 'here').enter(
            frozen.UUIDString(), 'a test')
        self.addCleanup(entry.remove)

        code, found = self.listed()
        self.assertEqual(2, code)
        self.assertEqual({'well', 'old', 'drifts', 'frozen', 'hung0', 'hung1',
                          'hung2'}, set(found))
        self.assertEqual([], found['well']['findings'])
        self.assertEqual(
            (False, False, False, 'disconnected', 'by request (Nova, or '
             'virsh suspend)'),
            tuple(found['well'][name] for name in (
                'qemu_old', 'cpu_drift', 'hangs', 'agent', 'paused')))
        self.assertEqual(found['well']['qemu_today'],
                         found['well']['qemu'])
        self.assertTrue(found['old']['qemu_old'])
        self.assertIn('(deleted)', found['old']['qemu_why'])
        # libvirt's log of the guest has the version all the same.
        self.assertEqual(found['well']['qemu'], found['old']['qemu'])
        self.assertTrue(found['drifts']['cpu_drift'])
        self.assertIn('sse4.2', found['drifts']['cpu_lost'])
        for domain in hung:
            self.assertIn('SIGSTOP', found[domain.name()]['hangs_why'])
        self.assertIn('a test', found['frozen']['frozen_why'])
        self.assertEqual({'old'}, set(self.listed('--outdated')[1]))
        self.assertEqual({'drifts'}, set(self.listed('--drift')[1]))
        self.written(*(domain.UUIDString() for domain in hung))

        # Other calls wait for their QEMUs: no command does, though a
        # libvirt newer than 9.0 would let the call for the XML wait 30 s.
        for domain in hung:
            threading.Thread(target=self.resume, args=(domain.UUIDString(),),
                             daemon=True).start()
        libvirtd.wait_for(
            lambda: all(domain.controlInfo()[0] for domain in hung),
            'calls that wait for their QEMUs')
        started = time.monotonic()
        _, found = self.listed()
        self.written(*(domain.UUIDString() for domain in hung))
        _, out = self.run_command('agent', 'list', '-f', 'json')
        self.assertLess(time.monotonic() - started, 25)
        agents = {one['name']: one['state'] for one in json.loads(out)}
        self.assertEqual('disconnected', agents['well'])
        for domain in hung:
            self.assertTrue(found[domain.name()]['hangs'])
            self.assertIn(agents[domain.name()], ('disconnected', 'unknown'))

    def written(self, *hung: str) -> str:
        """The text of the file for node_exporter."""
        path = os.path.join(self.directory, 'nova_kvm_ext.prom')
        code, _ = self.run_command('metrics', '--textfile', path)
        self.assertEqual(0, code)
        with open(path) as f:
            text = f.read()
        for line in ('libvirt_up 1.0',
                     f'guests_hung{{hung="yes"}} {len(hung)}.0',
                     'guests_frozen 1.0',
                     'guests_qemu_outdated{outdated="yes"} 1.0',
                     'guests_cpu_drift{drift="yes"} 1.0',
                     *(f'guest_problem{{problem="hung",uuid="{uuid}"}} 1.0'
                       for uuid in hung)):
            self.assertIn(f'nova_kvm_ext_{line}\n', text)
        return text

    def test_in_prometheus(self):
        """With a real Prometheus and node_exporter.

        Debian's packages of these start servers on all addresses, so that no
        tool of ours installs them.
        """
        for name in ('prometheus', 'promtool', 'prometheus-node-exporter'):
            if shutil.which(name) is None:
                self.skipTest(f'{name} is not installed')
        old_qemu = self.a_qemu_of_its_own()
        hung = self.start('hung', emulator=old_qemu, model='Nehalem')
        os.unlink(old_qemu)
        self.stop_process(hung)
        entry = ledger.Ledger(self.directory, 'here').enter(
            hung.UUIDString(), 'a test')
        self.addCleanup(entry.remove)
        text = self.written(hung.UUIDString())
        subprocess.run(['promtool', 'check', 'metrics'], input=text,
                       text=True, check=True)
        rules = os.path.join(TOP, 'etc', 'prometheus',
                             'nova-kvm-ext.rules.yml')
        subprocess.run(['promtool', 'check', 'rules', rules], check=True)
        self.check_prometheus(rules, hung.UUIDString())

    def start_program(self, *command: str) -> None:
        log = open(os.path.join(self.directory, f'{command[0]}.log'), 'w')
        self.addCleanup(log.close)
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self.directory)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

    @staticmethod
    def a_port() -> int:
        with socket.socket() as found:
            found.bind(('127.0.0.1', 0))
            return found.getsockname()[1]

    def check_prometheus(self, rules: str, hung: str) -> None:
        """Scraped for real, each query of the dashboard is answered."""
        exporter, server = self.a_port(), self.a_port()
        config = os.path.join(self.directory, 'prometheus.yml')
        with open(config, 'w') as f:
            json.dump({
                'global': {'scrape_interval': '1s',
                           'evaluation_interval': '1s'},
                'rule_files': [rules],
                'scrape_configs': [{'job_name': 'node', 'static_configs': [
                    {'targets': [f'127.0.0.1:{exporter}']}]}]}, f)
        self.start_program(
            'prometheus-node-exporter', '--collector.disable-defaults',
            '--collector.textfile',
            f'--collector.textfile.directory={self.directory}',
            f'--web.listen-address=127.0.0.1:{exporter}')
        self.start_program(
            'prometheus', f'--config.file={config}',
            f'--storage.tsdb.path={self.directory}/tsdb',
            f'--web.listen-address=127.0.0.1:{server}')
        url = f'http://127.0.0.1:{server}/api/v1'

        def ask(path: str, **arguments: str) -> Any:
            query = urllib.parse.urlencode(arguments)
            try:
                with urllib.request.urlopen(f'{url}/{path}?{query}',
                                            timeout=10) as answer:
                    return json.load(answer)['data']
            except OSError:
                return {}

        def alerts() -> set[str]:
            return {alert['labels']['alertname']
                    for alert in ask('alerts').get('alerts', ())}

        # Most of them wait for longer than a test; pending is enough.
        libvirtd.wait_for(lambda: {
            'NovaKvmExtGuestHung', 'NovaKvmExtGuestsOutdated',
            'NovaKvmExtCpuDrift'} <= alerts(), 'alert of the rules')
        with open(os.path.join(TOP, 'etc', 'grafana',
                               'nova-kvm-ext.json')) as f:
            panels = json.load(f)['panels']
        answered = {}
        for panel in panels:
            for target in panel['targets']:
                found = ask('query', query=target['expr'].replace(
                    '$instance', '.*'), time=str(time.time()))
                self.assertIn('result', found, panel['title'])
                answered[panel['title']] = found['result']
        self.assertEqual('1', answered['Guests that hang'][0]['value'][1])
        self.assertIn(hung, [
            one['metric']['uuid'] for one in answered['Guests to look into']
            if one['metric']['problem'] == 'hung'])
