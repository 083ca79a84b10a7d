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

"""Who may import whom: the house's one structural rule, read off the code.

See doc/source/contributor/architecture.rst.
"""

import ast
import os
import pathlib
import sys

from oslotest import base

import nova_kvm_ext

TOP = os.path.dirname(nova_kvm_ext.__file__)

# Facts and decisions: frozen data in, frozen data out.
PURE = {
    'boot.report', 'boot.spec', 'boot.verify', 'conf', 'cpu.capabilities',
    'cpu.choose', 'cpu.compare', 'cpu.cpu_map', 'cpu.definition',
    'cpu.document', 'cpu.levels', 'cpu.stored', 'cpu.traits', 'cpu.unshown',
    'cpu.usable', 'cpu.vulnerabilities', 'errors', 'exit_codes',
    'fleet.admit', 'fleet.baseline', 'fleet.drain', 'fleet.export',
    'fleet.fit', 'fleet.kinds', 'guest_agent.channel', 'guest_agent.counts',
    'guest_agent.replies', 'guests.drift', 'guests.model',
    'guests.reasons', 'guests.resume',
    'guests.verdicts', 'health.verdict', 'host.access',
    'host.checks.causes', 'host.checks.early',
    'host.checks.device', 'host.checks.kernel', 'host.checks.libvirt',
    'host.checks.migration',
    'host.checks.nova',
    'host.checks.runner', 'host.checks.storage', 'host.checks.verdict',
    'host.checks.vhost',
    'host.distribution', 'host.install', 'host.kvm_proof', 'host.model',
    'host.options', 'host.qemu_conf', 'host.storage_model', 'images.qcow2',
    'images.qed',
    'images.signatures', 'images.verdict', 'images.vmdk', 'log_codes',
    'metrics.names', 'metrics.samples',
    'known_errors.__init__', 'known_errors.ceph', 'known_errors.connection',
    'known_errors.cpu',
    'known_errors.devices', 'known_errors.emulator', 'known_errors.host',
    'known_errors.kvm', 'known_errors.memory', 'known_errors.migration',
    'known_errors.network', 'known_errors.row', 'known_errors.storage',
    'migration.completed', 'migration.forecast', 'migration.policy',
    'migration.repair', 'migration.verdict',
    'option_values', 'request', 'rollback.traces', 'settings',
    'storage.consistency',
    'traits', 'vhost.policy', 'vhost.proof', 'vhost.queues', 'words'}
# They read this host, by themselves or with a connection they are handed.
READERS = {
    'boot.inside', 'cpu.reader', 'fleet.cloud', 'fleet.files',
    'fleet.this_host', 'guest_agent.client', 'guests.pauses',
    'guests.reader',
    'host.configuration',
    'health.probe', 'host.door', 'host.facts', 'host.few_options',
    'host.install_facts',
    'host.kernel_facts',
    'host.libvirt_facts', 'host.libvirt_place', 'host.nova_python',
    'host.post_copy_facts', 'host.probe', 'host.probe_answers', 'host.service',
    'host.storage_facts',
    'host.user_facts', 'host.virt_type', 'images.answers', 'images.facts',
    'images.headers', 'images.qemu_img', 'live_xml', 'log', 'metrics.counted',
    'migration.dirty_rate',
    'migration.records',
    'rollback.cloud',
    'vhost.process'}
# They make files, processes and domains, but know nothing of Nova.
MAKERS = {
    'boot.leftovers', 'boot.supervisor', 'boot.testguest', 'fleet.page',
    'guest_agent.holds', 'guest_agent.ledger', 'guest_agent.operations',
    'guest_agent.watchdog',
    'counters', 'guests.resumer', 'guests.survey',
    'health.record',
    'images.convert', 'metrics.text', 'migration.comeback',
    'migration.elsewhere', 'storage.counting', 'storage.mirrors'}
# The edge to Nova.
NOVA = {
    'boot.cloudless', 'boot.worker', 'contract', 'cpu.hooks',
    'designer', 'driver', 'extra_specs', 'fleet.hooks',
    'guest_agent.counting', 'guest_agent.freezes',
    'guest_agent.frozen', 'guest_agent.hooks', 'guest_agent.limits',
    'guest_agent.thaws',
    'guests.bulk', 'guests.descriptions', 'guests.errands', 'guests.hooks',
    'health.hooks', 'host.hooks', 'host.node_devices', 'images.hooks',
    'images.questions', 'metrics.hooks', 'migration.departures',
    'migration.hooks', 'migration.starts', 'storage.hooks',
    'storage.image_api', 'storage.rbd', 'storage.volumes', 'vhost.hooks',
    'vhost.privileged', 'vhost.vif'}
# What runs in nova-scheduler.
SCHEDULER = {'scheduler.filters'}
COMMANDS = {
    'cmd.agent', 'cmd.base', 'cmd.columns', 'cmd.cpu', 'cmd.dirty_rate',
    'cmd.entry',
    'cmd.findings', 'cmd.fleet', 'cmd.freeze', 'cmd.guest', 'cmd.guests',
    'cmd.host', 'cmd.image', 'cmd.lazy', 'cmd.main', 'cmd.manual',
    'cmd.metrics', 'cmd.quick', 'cmd.repair',
    'cmd.rollback',
    'cmd.status', 'cmd.vhost'}

NO_NOVA = {
    'nova.conf', 'nova.privsep.utils', 'nova.virt.libvirt.utils'}
PURE_LIBRARIES = {'lxml', 'os_traits', 'oslo_config', 'oslo_utils'}
# What each floor may import from outside the standard library, and from which
# floors.
RULES = {
    'PURE': (PURE, PURE_LIBRARIES, PURE),
    'READERS': (READERS, PURE_LIBRARIES | {'keystoneauth1', 'libvirt_qemu',
                                           'openstack', 'oslo_concurrency',
                                           'oslo_context', 'oslo_log'},
                PURE | READERS),
    'MAKERS': (MAKERS, {'jinja2', 'libvirt', 'prometheus_client'},
               PURE | READERS | MAKERS),
    'NOVA': (NOVA, (PURE_LIBRARIES | NO_NOVA |
                    {'libvirt_qemu', 'nova', 'oslo_concurrency', 'oslo_log',
                     'oslo_serialization'}),
             PURE | READERS | MAKERS | NOVA),
    'SCHEDULER': (SCHEDULER, {'nova', 'oslo_log'}, PURE | {'log'}),
    'COMMANDS': (COMMANDS,
                 {'cliff', 'docutils', 'libvirt', 'oslo_config',
                  'oslo_upgradecheck', 'shtab', 'stevedore'} | NO_NOVA,
                 (PURE | READERS | MAKERS | COMMANDS)),
}


def modules() -> dict[str, str]:
    """Path by name of every module of the package that is no test."""
    found = {}
    for directory, _, files in os.walk(TOP):
        for file in files:
            path = os.path.join(directory, file)
            name = os.path.relpath(path, TOP)[:-3].replace(os.sep, '.')
            if file.endswith('.py') and not name.startswith('tests.') and (
                    file != '__init__.py' or os.path.getsize(path)):
                found[name] = path
    return found


def imports(path: str) -> tuple[set[str], set[str]]:
    """Outside libraries and rooms of ours that a file imports, anywhere."""
    with open(path) as f:
        tree = ast.parse(f.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    libraries, rooms = set(), set()
    known = set(modules())
    for name in names:
        top, _, rest = name.partition('.')
        if top == 'nova_kvm_ext':
            # `from nova_kvm_ext.x import name` may name a thing inside x.
            rooms |= {room for room in known
                      if rest == room or rest.startswith(room + '.')}
        elif top not in sys.stdlib_module_names:
            # Nova's options, its table of traits and its test of direct I/O
            # alone are no Nova.
            libraries.add(name if name in NO_NOVA else top)
    return libraries, rooms


class LayeringTestCase(base.BaseTestCase):

    def test_every_room_has_its_floor(self):
        floors = [rooms for rooms, _, _ in RULES.values()]
        self.assertEqual(set(modules()), set().union(*floors))
        self.assertEqual(len(modules()), sum(map(len, floors)))

    def test_no_room_reaches_up(self):
        wrong = []
        for floor, (rooms, allowed_libraries, allowed_rooms) in RULES.items():
            for room in rooms:
                libraries, ours = imports(modules()[room])
                wrong += [f'{room} ({floor}) imports {name}' for name in
                          sorted((libraries - allowed_libraries) |
                                 (ours - allowed_rooms))]
        self.assertEqual([], wrong)

    def test_no_thread_is_joined_with_a_limit(self):
        """Where eventlet has patched Python 3.13's threads, that raises.

        eventlet's Timeout, a BaseException, at the limit. An Event that the
        thread sets can be waited for.
        """
        self.assertEqual([], [
            f'{room}:{node.lineno}' for room, path in modules().items()
            for node in ast.walk(ast.parse(pathlib.Path(path).read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == 'join'
            and (any(word.arg == 'timeout' for word in node.keywords)
                 or any(isinstance(value, ast.Constant)
                        and isinstance(value.value, (int, float))
                        for value in node.args))])

    def test_only_the_driver_and_the_boot_read_novas_conf(self):
        for room, path in modules().items():
            with open(path) as f:
                text = f.read()
            if 'CONF.' in text:
                self.assertIn(room, {
                    'driver', 'cpu.hooks', 'guest_agent.frozen',
                    'guest_agent.hooks', 'guest_agent.limits',
                    'guest_agent.thaws', 'guests.hooks', 'health.hooks',
                    'host.hooks', 'vhost.hooks', 'images.hooks',
                    'metrics.hooks', 'migration.hooks',
                    'migration.starts',
                    'boot.cloudless', 'boot.worker'})

    def test_every_module_says_what_it_is(self):
        for room, path in modules().items():
            with open(path) as f:
                self.assertTrue(ast.get_docstring(ast.parse(f.read())), room)
