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

"""Nova's driver and ours on a real libvirt, for tests of the guest's CPU.

A process of its own, for Nova leaves threads behind: run as ``python -m`` with
a scenario, libvirt's URI and a directory. What was seen is its last line, one
JSON object.
"""

# First of all, as in boot/worker.py.
import nova.cmd.compute  # noqa: F401

import dataclasses
import json
import logging
import os
import sys
import traceback
from typing import Any
import uuid

from nova import exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver

from nova_kvm_ext.boot import cloudless
from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import hooks
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import driver as kvm_driver
from nova_kvm_ext.settings import Settings

CONF = cloudless.CONF


class _Warnings(logging.Handler):
    """Keeps what this package warns of."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


class Session:
    """Drivers, one after the other, and guests that do nothing.

    :param directory: an existing directory that QEMU's user can traverse
    """

    def __init__(self, uri: str, directory: str) -> None:
        cloudless.configure(directory, directory, [])
        CONF.set_override('connection_uri', uri, group='libvirt')
        # It would warn of the machine that runs the tests: there is one for
        # /dev/kvm where no udev has opened it to its group.
        CONF.set_override('host_check', 'off', group='kvm_ext')
        self.context = cloudless.context()
        # As the API's requests have: a hard reboot looks for it.
        self.context.auth_token = 'token'
        path = os.path.join(directory, 'empty.img')
        with open(path, 'wb') as f:
            f.truncate(1 << 20)
        self.image_path = path
        self.logged: list[str] = []
        logging.getLogger('nova_kvm_ext').addHandler(_Warnings(self.logged))

    def driver(self, kind: type = kvm_driver.KVMDriver,
               **options: Any) -> Any:
        """A driver after a start of the service with these options."""
        for name in ('virt_type', 'cpu_mode', 'cpu_models'):
            CONF.clear_override(name, group='libvirt')
        for name in ('cpu_mode', 'cpu_model', 'keep_guest_cpu'):
            CONF.clear_override(name, group='kvm_ext')
        CONF.set_override('virt_type', 'qemu', group='libvirt')
        for name, value in options.items():
            CONF.set_override(name, value, group='kvm_ext')
        made = kind(cloudless.virtapi())
        made.init_host(CONF.host)
        return made

    def spawn(self, driver: Any, properties: dict[str, str] | None = None,
              extra_specs: dict[str, str] | None = None) -> objects.Instance:
        image = cloudless.LocalImage(self.image_path, 'raw', properties or {})
        image.serve(driver)
        instance = cloudless.create_instance(
            self.context, str(uuid.uuid4()), image, vcpus=1, memory_mb=64,
            extra_specs=extra_specs or {})
        driver.spawn(self.context, instance, image.meta(), [], None, {},
                     network_info=cloudless.network(None, None),
                     block_device_info=None)
        return instance

    def reboot(self, driver: Any, instance: objects.Instance) -> None:
        driver.reboot(self.context, instance, cloudless.network(None, None),
                      'HARD', share_info=objects.ShareMappingList(objects=[]))

    def stored(self, instance: objects.Instance) -> dict[str, Any] | None:
        """The CPU in the database."""
        found = objects.VirtCPUModel.get_by_instance_uuid(
            self.context, instance.uuid)
        if found is None:
            return None
        return {'model': found.model, 'mode': found.mode,
                'match': found.match, 'vendor': found.vendor,
                'topology': found.topology is not None,
                'features': [[f.name, f.policy] for f in found.features]}

    def live(self, driver: Any, instance: objects.Instance) -> dict[str, Any]:
        """The CPU in the domain's live XML."""
        return dataclasses.asdict(definition.CPU.parse(
            driver._host.get_guest(instance).get_xml_desc()))


def kept(session: Session) -> dict[str, Any]:
    """What is kept after the start, and by hard reboots."""
    seen: dict[str, Any] = {}
    modes: list[dict[str, str]] = [
        {'cpu_mode': 'host-model'}, {'cpu_mode': 'maximum'},
        {'cpu_mode': 'none'},
        {'cpu_mode': 'custom', 'cpu_model': 'Nehalem'}]
    modes += [{'cpu_mode': 'custom', 'cpu_model': level.name}
              for level in levels.ALL[:3]]
    for options in modes:
        name = options.get('cpu_model', options['cpu_mode'])
        driver = session.driver(kvm_driver.KVMDriver, **options)
        instance = session.spawn(driver)
        seen[name] = {'stored': session.stored(instance),
                      'live': session.live(driver, instance)}
        if name == 'Nehalem':
            for keep in (True, False):
                session.logged.clear()
                upgraded = session.driver(
                    cpu_mode='host-model', keep_guest_cpu=keep)
                session.reboot(upgraded, instance)
                seen[f'keep={keep}'] = {
                    'stored': session.stored(instance),
                    'live': session.live(upgraded, instance),
                    'logged': list(session.logged)}
        driver.destroy(session.context, instance,
                       cloudless.network(None, None))
    return seen


def before(session: Session) -> dict[str, Any]:
    """A guest that plain LibvirtDriver started, and the way back."""
    plain = session.driver(libvirt_driver.LibvirtDriver)
    instance = session.spawn(plain)
    # The manager does it.
    instance.save()
    seen = {'plain': session.stored(instance)}
    ours = session.driver()
    # The first periodic update does it.
    ours._errands.go_on()
    seen['ours'] = session.stored(instance)
    seen['live'] = session.live(ours, instance)
    plain = session.driver(libvirt_driver.LibvirtDriver)
    instance = objects.Instance.get_by_uuid(session.context, instance.uuid)
    # What plain LibvirtDriver on a KVM host compares with its own CPU.
    config = plain._vcpu_model_to_cpu_config(instance.vcpu_model)
    connection = plain._host.get_connection()
    seen['plain compares'] = connection.compareHypervisorCPU(
        None, None, None, 'qemu', config.to_xml(), 0)
    ours.destroy(session.context, instance, cloudless.network(None, None))
    return seen


def wishes(session: Session) -> dict[str, Any]:
    """Guests whose flavor or image asks for a CPU."""
    driver = session.driver(cpu_mode='host-model')
    seen: dict[str, Any] = {}
    for name, properties, extra_specs in (
            ('flavor model', {}, {'kvm_ext:cpu_model': 'penryn'}),
            ('flavor mode', {}, {'kvm_ext:cpu_mode': 'maximum'}),
            ('image level', {'kvm_ext_cpu_model': 'x86-64-v2'}, {}),
            ('image not allowed', {'kvm_ext_cpu_mode': 'maximum'}, {}),
            ('contradiction', {'kvm_ext_cpu_model': 'x86-64-v2'},
             {'kvm_ext:cpu_model': 'Penryn'}),
            ('impossible here', {}, {'kvm_ext:cpu_model': 'x86-64-v4'})):
        try:
            instance = session.spawn(driver, properties, extra_specs)
        except exception.NovaException as e:
            seen[name] = {'refused': type(e).__name__, 'words': str(e)}
        else:
            seen[name] = session.live(driver, instance)
            driver.destroy(session.context, instance,
                           cloudless.network(None, None))
    return seen


def pairs(session: Session) -> dict[str, Any]:
    """Guests' CPUs against hypervisors, by the driver and by libvirt."""
    driver = session.driver(cpu_mode='host-model')
    connection = driver._host.get_connection()
    settings = Settings.from_conf(CONF)
    seen: dict[str, Any] = {'pairs': 0, 'yes': 0, 'wrong': [], 'unnamed': [],
                            'pure': 0, 'pure wrong': []}
    hosts = {}
    for virt_type in ('qemu', 'kvm'):
        judge = hooks.CPUHooks(driver._host)
        judge.settle(settings, virt_type)
        hosts[virt_type] = judge
    hosts_models = [judge._host.caps.host_model for judge in hosts.values()]
    for virt_type, judge in hosts.items():
        host = judge._host
        assert isinstance(host, usable.Host)
        guests = [
            definition.CPU(mode='custom', match='exact', model=model.name)
            for model in host.caps.models]
        guests += [level.cpu for level in levels.ALL]
        for cpu in [*hosts_models, *(
                definition.CPU(mode='custom', match='exact', model=model)
                for model in ('kvm64', 'qemu64', 'Nehalem', 'EPYC'))]:
            guests += [cpu] + [
                cpu.with_features([(feature, policy)])
                for feature in ('avx512f', 'vmx', 'pcid', 'aes', 'svm')
                for policy in ('require', 'disable')]
        for cpu in guests:
            seen['pairs'] += 1
            libvirts = connection.compareHypervisorCPU(
                None, 'x86_64', None, virt_type, cpu.to_xml(), 0) > 0
            seen['yes'] += libvirts
            try:
                judge.check_guest(hooks._vcpu_model(cpu), None, lambda _: None)
                ours, words = True, ''
            except exception.InvalidCPUInfo as e:
                ours, words = False, str(e)
            what = f'{virt_type}: {cpu.to_xml()}'
            if ours != libvirts:
                seen['wrong'].append(f'{what}: libvirt says {libvirts}, '
                                     f'we say {words or True}')
            if not ours and 'lacks' not in words and 'CPU of' not in words:
                seen['unnamed'].append(f'{what}: {words}')
            pure = compare.compare(cpu, host.caps, host.known).possible
            if pure is not None:
                seen['pure'] += 1
                if pure != libvirts:
                    seen['pure wrong'].append(
                        f'{what}: libvirt says {libvirts}')
    instance = cloudless.create_instance(
        session.context, str(uuid.uuid4()),
        cloudless.LocalImage(session.image_path, 'raw', {}), vcpus=1,
        memory_mb=64, extra_specs={})
    instance.vcpu_model = hooks._vcpu_model(levels.find('x86-64-v4').cpu)
    try:
        driver.check_can_live_migrate_destination(
            session.context, instance, {}, {
                'disk_available_least': 1, 'free_disk_gb': 1})
    except exception.MigrationPreCheckError as e:
        seen['error'] = str(e)
    return seen


def main() -> None:
    scenario, uri, directory = sys.argv[1:]
    seen = {each.__name__: each for each in (kept, before, wishes, pairs)}[
        scenario](Session(uri, directory))
    print(json.dumps(seen))
    sys.stdout.flush()
    os._exit(0)


if __name__ == '__main__':
    try:
        main()
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    # Nova's threads are not daemons: a plain exit would wait for them.
    os._exit(1)
