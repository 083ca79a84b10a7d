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


"""The driver's service on a host that breaks and is repaired.

It runs as its own user, as distributions have it, with libvirt's polkit rule
and sudo for its privileged daemon.
"""

# First of all, as in boot/worker.py.
import nova.cmd.compute  # noqa: F401

from collections.abc import Iterator
import os
import pwd
import tempfile
from typing import Any

from nova.db.main import api as db
import nova.privsep
from nova import rpc

from nova_kvm_ext.boot import cloudless
from nova_kvm_ext import driver as kvm_driver
from nova_kvm_ext.tests.kvm import base

CONF = cloudless.CONF

_SETTINGS = """
[DEFAULT]
transport_url = fake:///
[nova_sys_admin]
helper_command = sudo /opt/venv/bin/privsep-helper
[kvm_ext]
virt_type = kvm
vhost_net = require
"""


def _become_nova(directory: str) -> None:
    user = pwd.getpwnam('nova')
    for path, _, files in os.walk(directory):
        for name in ('', *files):
            os.chown(os.path.join(path, name), user.pw_uid, user.pw_gid)
    os.initgroups('nova', user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def _record() -> tuple[bool, str]:
    found = db.service_get_by_compute_host(cloudless.context(), CONF.host)
    return bool(found.disabled), found.disabled_reason or ''


def service(directory: str) -> Iterator[Any]:
    """nova-compute's driver, step by step; each says what happened to it."""
    settings = os.path.join(directory, 'nova.conf')
    with open(settings, 'w') as f:
        f.write(_SETTINGS)
    cloudless.configure(directory, directory, [settings])
    _become_nova(directory)
    # Not the test's, where only root may go.
    tempfile.tempdir = directory
    # A privileged daemon of its own, as the service has it.
    nova.privsep.sys_admin_pctxt.set_client_mode(True)
    rpc.init(CONF)
    driver = kvm_driver.KVMDriver(cloudless.virtapi())
    try:
        driver.init_host(CONF.host)
    except Exception as e:
        yield type(e).__name__, str(e)
    else:
        yield '', ''
    driver = kvm_driver.KVMDriver(cloudless.virtapi())
    driver.init_host(CONF.host)
    yield sorted(driver._our_traits())
    while True:
        driver.get_available_resource(CONF.host)
        yield _record()


class DriverTestCase(base.KVMHostTestCase):

    breaks_host = True

    def test_service(self) -> None:
        """Refused while the host is broken, started once it is repaired."""
        repair = 'udevadm trigger --action=add --name-match=kvm --settle'
        self.addCleanup(self.shell, f'{repair}; modprobe vhost_net')
        take = 'chown root:root /dev/kvm; chmod 0600 /dev/kvm'
        self.shell(f'modprobe vhost_net; {take}')
        nova = self.child(service, self.directory)
        kind, text = nova.result()
        self.assertEqual('InvalidConfiguration', kind, text)
        self.assertIn('KVM204 Permissions of /dev/kvm', text)

        # With the node goes what would load the module by itself.
        self.shell(f'{repair}; modprobe -r vhost_net; rm -f /dev/vhost-net')
        traits = nova.result()
        self.assertIn('CUSTOM_KVM_EXT_VHOST_NET', traits)
        self.assertTrue(os.path.exists('/sys/module/vhost_net'))
        self.assertTrue(os.path.exists('/dev/vhost-net'))

        self.assertEqual((False, ''), nova.result())
        self.shell(take)
        disabled, reason = nova.result()
        self.assertTrue(disabled)
        self.assertIn('AUTO: nova-kvm-ext: Host check KVM20', reason)
        self.shell(repair)
        self.assertEqual((False, ''), nova.result())
