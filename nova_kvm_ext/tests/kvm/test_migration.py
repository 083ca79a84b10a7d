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


"""Live migration between two hosts of different CPU, through the driver."""

import re
from typing import Any
import uuid

from nova_kvm_ext.tests.kvm import base
from nova_kvm_ext.tests.kvm import migration


def _migrate() -> dict[str, Any]:
    """A guest whose CPU both hosts can give, and one that is the source's."""
    migration.connect_machines('source')
    side = migration.Side('source')
    base.say('log', text='the source is ready')
    peer = migration.Peer()
    seen: dict[str, Any] = {}

    common = str(uuid.uuid4())
    side.spawn(common, {'kvm_ext:cpu_model': 'qemu64'})
    seen['common before'] = side.answers(common)
    seen['cpu'] = side.cpu(common)
    base.say('log', text='the guest with qemu64 runs')
    seen['steps'] = side.send(common, peer)
    base.say('log', text=f'live migration: {seen["steps"]}')
    seen['kept'] = peer.call('arrived', common)
    seen['common after'] = peer.call('answers', common)
    seen['cpu there'] = peer.call('cpu', common)
    seen['left here'] = side.domains()
    peer.call('destroy', common)

    # One after the other: the machines have one CPU each.
    own = str(uuid.uuid4())
    instance = side.spawn(own, {})
    seen['own before'] = side.answers(own)
    base.say('log', text='the guest with the source\'s own CPU runs')
    seen['check'] = peer.call(
        'check', own, {}, instance.vcpu_model.obj_to_primitive())
    base.say('log', text=f'the destination says {seen["check"]}')
    seen['asked'] = peer.call('domains')
    seen['libvirt'] = side.libvirts_answer(own, peer)
    base.say('log', text=f'libvirt says {seen["libvirt"]}')
    seen['own after'] = side.answers(own)
    side.destroy(own)
    return seen


def _features(refusal: str) -> set[str]:
    """Those that a refusal names, at its end."""
    return set(refusal.rstrip('.').rsplit(': ', 1)[1].split(', '))


class MigrationTestCase(base.KVMHostTestCase):

    breaks_host = True

    def test_live_migration(self) -> None:
        seen = self.call(_migrate)
        self.show('seen', str(seen))
        self.assertIsNotNone(seen['own before'])
        self.assertIsNotNone(seen['common before'])

        # Libvirt was not asked to migrate; it says the same when it is.
        self.assertEqual([], seen['asked'])
        said = re.search('missing features: (.*)', seen['libvirt'])
        self.assertIsNotNone(said, seen['libvirt'])
        assert said is not None
        self.assertEqual(set(), set(said[1].split(',')) -
                         _features(seen['check']['refused']))
        self.assertIsNotNone(seen['own after'])

        self.assertEqual(['moved'], seen['steps'])
        self.assertEqual(seen['cpu'], seen['cpu there'])
        self.assertIn('qemu64', seen['kept'])
        self.assertIsNotNone(seen['common after'])
        self.assertEqual([], seen['left here'])
