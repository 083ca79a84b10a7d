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

"""Snapshots of a server's own disk: consistent, or refused with the reason.

On the hosts of the cloud of tools/run-cloud-tests alone. The guest writes all
the time, so a snapshot for which it was not frozen needs its journal.
"""

import configparser

from nova_kvm_ext.storage import consistency
from nova_kvm_ext.tests.cloud import ceph
from nova_kvm_ext.tests.cloud import volumes

_HOW_MANY = 3


class HostSnapshotTestCase(volumes.HostVolumeTestCase):

    def test_are_consistent_under_load(self):
        server = self._writing()
        states = []
        for _ in range(_HOW_MANY):
            image = self.snapshot(server)
            self.assertIsNotNone(image, self.events(server, 'createImage'))
            states.append(self.state_of_image(image))
            self.assertEqual(('yes', consistency.Reason.FROZEN.value),
                             self.said_of(image))
        self.assert_thawed(server)
        self.assertEqual(['clean'] * _HOW_MANY, states)

    def said_of(self, image):
        """What an image says: is it quiesced, and why so."""
        said = self.cloud.image.get_image(image.id).properties
        return said[consistency.QUIESCED], said[consistency.REASON]

    def _writing(self, **wanted):
        """A server that writes to its disk without pause."""
        server = self.boot(**wanted)
        self.wait_for_agent(server)
        self.write_load(server, '/data')
        return server


class ColdSnapshotTestCase(HostSnapshotTestCase):
    """Where Nova does not make a live snapshot, whatever the image says.

    With os_require_quiesce it fails and says why.
    """

    # It is made once.
    test_are_consistent_under_load = None

    def setUp(self):
        super().setUp()
        self.host = self.hosts()[0]

    def _refused(self, server):
        """A snapshot fails, says why, and does the guest no harm."""
        log = self.log_since(self.host)
        self.assertIsNone(self.snapshot(server), 'It was made')
        self.wait_for_status(server, 'ACTIVE')
        self.assertIn('os_require_quiesce', log())
        self.assertIn('cold snapshot', log())
        self.assert_thawed(server)

    def _not_required(self, **more):
        """An image that says nothing of quiescing."""
        return self.make_image(volumes.base.guest_file(), properties={
            'hw_qemu_guest_agent': 'yes'}, **more)

    def _made(self, server):
        """A snapshot is made, and says what it is."""
        log = self.log_since(self.host)
        made = self.snapshot(server)
        self.assertIsNotNone(made, self.events(server, 'createImage'))
        self.assertIn('is not quiesced', log())
        self.assertEqual('needs recovery', self.state_of_image(made))
        self.assertEqual(('no', consistency.Reason.COLD.value),
                         self.said_of(made))
        self.assert_thawed(server)

    def _need_ceph(self):
        if self.storage.kind != 'ceph':
            self.skipTest('Disks of guests are not in Ceph')

    def test_live_snapshots_disabled(self):
        self.change(self.host, {
            'workarounds': {'disable_libvirt_livesnapshot': True}})
        self._refused(self._writing(host=self.host))
        self._made(self._writing(
            host=self.host, image=self._not_required()))

    def test_server_that_is_suspended(self):
        server = self._writing(host=self.host)
        self.cloud.compute.suspend_server(server)
        self.wait_for_status(server, 'SUSPENDED')
        log = self.log_since(self.host)
        self.assertIsNone(self.snapshot(server), 'It was made')
        self.assertIn('Resume the server first', log())
        self.wait_for_status(server, 'SUSPENDED')
        self.cloud.compute.resume_server(server)
        self.wait_for_status(server, 'ACTIVE')
        self.assert_thawed(server)
        self.assertIsNotNone(self.snapshot(server))

    def test_image_is_not_in_ceph(self):
        self._need_ceph()
        image = self.make_image(
            volumes.base.guest_file(), store='files', properties={
                'hw_qemu_guest_agent': 'yes', 'os_require_quiesce': 'yes'})
        self._refused(self._writing(host=self.host, image=image))

    def test_glance_shows_no_direct_url(self):
        self._need_ceph()
        # The disk of a server that was built before is a clone, which tells
        # where its image is.
        self.addCleanup(self._tell_glance, 'True')
        self._tell_glance('False')
        self._refused(self._writing(host=self.host))
        self._made(self._writing(
            host=self.host, image=self._not_required()))

    def test_user_may_not_write_to_the_pool_of_images(self):
        self._need_ceph()
        server = self._writing(host=self.host)
        self._forbid_images()
        self._refused(server)

    def _forbid_images(self):
        """Let Nova's user read the pool of images, and no more."""
        def allow(**capabilities):
            with ceph.Cluster() as cluster:
                cluster.allow('nova', ceph.CAPABILITIES['nova'] | capabilities)
        self.addCleanup(allow)
        allow(osd='profile rbd pool=vms, profile rbd-read-only pool=images')

    def _tell_glance(self, shown):
        path = self.state / 'etc' / 'glance-api.conf'
        options = configparser.ConfigParser(
            interpolation=None, default_section='')
        options.read(path)
        options['DEFAULT']['show_image_direct_url'] = shown
        with open(path, 'w') as file:
            options.write(file)
        self.services.stop('glance-api')
        self.services.start('glance-api')
