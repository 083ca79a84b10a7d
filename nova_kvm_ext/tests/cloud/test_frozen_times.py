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

"""How long each kind of snapshot has a guest frozen, with either driver.

libvirt's own log tells when the agent has answered, so both drivers are
measured alike, in a guest that writes all the time. Times are figures for
people. What is checked is whether each snapshot of ours is consistent, and
that nothing is frozen longer than a guest bears.
"""

import datetime
import functools
import itertools
import os
import re
import statistics

import ddt
from openstack import exceptions
from testtools import content

from nova_kvm_ext.tests.cloud import configuration
from nova_kvm_ext.tests.cloud import storage
from nova_kvm_ext.tests.cloud import volumes

_HOW_MANY = int(os.environ.get('NOVA_KVM_EXT_CLOUD_SNAPSHOTS', '3'))
# A busy machine is not to fail this. Windows thaws by itself after as long.
_BEARABLE = 10.0
_FILTER = '1:qemu.qemu_agent'
_LINE = re.compile(
    r'^(\d+-\d+-\d+ [\d:.]+)\+0000: \d+: debug : qemuAgentCommandFull:\d+ : '
    r"(?:Send command '(.*?)' for write|(Receive) command reply)")
PLAIN: configuration.Options = {
    'DEFAULT': {'compute_driver': 'libvirt.LibvirtDriver'},
    'libvirt': {'virt_type': 'qemu', 'cpu_mode': 'host-model'}}


def frozen_times(log: str) -> list[tuple[float, float]]:
    """What libvirt's log says of freezes.

    :returns: of each the seconds that the freeze took, and those from its
        answer to that of the thaw
    """
    found = []
    sent: tuple[datetime.datetime, str] | None = None
    freeze: tuple[float, datetime.datetime] | None = None
    for line in log.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        when = datetime.datetime.fromisoformat(match[1])
        if match[3] is None:
            sent = (when, match[2])
            continue
        if sent is None:
            continue
        if 'guest-fsfreeze-freeze' in sent[1]:
            freeze = ((when - sent[0]).total_seconds(), when)
        elif 'guest-fsfreeze-thaw' in sent[1] and freeze is not None:
            found.append((freeze[0], (when - freeze[1]).total_seconds()))
            freeze = None
        sent = None
    return found


def is_over(log: str) -> bool:
    """Whether the last freeze in libvirt's log has been thawed."""
    last = log.rpartition("Send command '{\"execute\":\"guest-fsfreeze-freeze")
    thaw = last[2].partition('guest-fsfreeze-thaw')
    return not last[1] or 'Receive command reply' in thaw[2]


@ddt.ddt
class FrozenTimesTestCase(volumes.HostVolumeTestCase):

    def setUp(self):
        super().setUp()
        self.host = self.hosts()[0]
        self._lines = []

    def _is_over(self, before):
        return is_over(self._log()[before:])

    def _log(self):
        """What libvirt has logged of agents."""
        return (self.state / 'logs' / f'{self.host}-libvirt-log' /
                'agent.log').read_text(errors='replace')

    def _watch(self):
        """Have libvirt log what it asks of agents, until the test is over."""
        def tell(what, value):
            self.on_host(self.host, ['virt-admin', '-q', '-c',
                                     'libvirtd:///system', what, value])
        file = '/var/log/libvirt/libvirtd.log'
        self.addCleanup(tell, 'daemon-log-outputs', f'3:file:{file}')
        self.addCleanup(tell, 'daemon-log-filters', '')
        tell('daemon-log-filters', _FILTER)
        tell('daemon-log-outputs',
             f'3:file:{file} 1:file:/var/log/libvirt/agent.log')

    def wait_for_agent(self, server):
        """Wait until a server's agent answers, whatever driver it is under."""
        self.wait('agent that answers', lambda: 'return' in self.on_host(
            self.host, ['virsh', 'qemu-agent-command', self.domain(server),
                        '{"execute": "guest-ping"}'], check=False))

    def _measure(self, kind, make, state, ours):
        """Make snapshots, and keep what they took.

        :param make: makes one; None where that fails
        :param state: tells whether it is consistent
        """
        times, states = [], []
        for _ in range(_HOW_MANY):
            before = len(self._log())
            made = make()
            # Nova's API has an answer before the guest is thawed.
            self.wait('thaw', functools.partial(self._is_over, before))
            times += frozen_times(self._log()[before:])
            states.append('failed' if made is None else state(made))
        clean = states.count('clean')
        driver = 'KVMDriver' if ours else 'LibvirtDriver'
        if times:
            freezes, frozen = zip(*times)
            text = (f'frozen {statistics.median(frozen):.3f} s (at most '
                    f'{max(frozen):.3f}), freeze took '
                    f'{statistics.median(freezes):.3f} s')
        else:
            text = 'never frozen'
        self._lines.append(
            f'{kind:24} {driver:13} {text}; {clean} of {_HOW_MANY} clean'
            + ('' if clean == _HOW_MANY else f' ({states[0]})'))
        self.addDetail('figures', content.text_content(
            '\n'.join(self._lines)))
        if ours:
            self.assertEqual(['clean'] * _HOW_MANY, states)
            self.assertEqual(_HOW_MANY, len(times))
            self.assertLess(max(frozen), _BEARABLE)

    def _begin(self, ours):
        """Have the host under a driver, with libvirt's log of agents."""
        if not ours:
            self.change(self.host, PLAIN)
        self._watch()

    @ddt.data(True, False)
    def test_own_disk(self, ours):
        self._begin(ours)
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        self.write_load(server, '/data')
        self._measure(
            'own disk, RBD direct' if self.storage.kind == 'ceph' else
            'own disk, file live', lambda: self.snapshot(server),
            self.state_of_image, ours)

    @ddt.data(True, False)
    def test_volume_that_is_a_file(self, ours):
        self.need('nfs')
        self._begin(ours)
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        volume = self.volume('nfs', image=self.filesystem)
        self.attach(server, volume)
        self.write_load(server, '/data', self.mount(server, volume))
        self._measure('volume, assisted (nfs)', lambda: self._cinder(volume),
                      self.state_of_snapshot, ours)

    @ddt.data(*itertools.product(storage.TYPES, (True, False)))
    @ddt.unpack
    def test_volume_backed(self, kind, ours):
        self.need(kind)
        self._begin(ours)
        server = self.boot_from(
            self.volume(kind, image=self.image), host=self.host)
        self.wait_for_agent(server)
        self.write_load(server, '/data')
        self._measure(f'volume-backed, API ({kind})',
                      lambda: self._image_of_volumes(server),
                      self.state_of_snapshot, ours)

    def _cinder(self, volume):
        snapshot = self.snapshot_of(volume)
        return snapshot.id if snapshot.status == 'available' else None

    def _image_of_volumes(self, server):
        try:
            image = self.snapshot(server)
            made = self.snapshots_of_image(image) if image else []
        except (AssertionError, exceptions.HttpException):
            # Where libvirt refuses to freeze a guest that is frozen already.
            return None
        return made[0] if made else None
