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

import os
import sys
import time
from unittest import mock

import fixtures
import libvirt
from oslotest import base

from nova_kvm_ext.migration import elsewhere

UUID = '6695eb01-f6a4-8304-79aa-97f2502e193f'
"""Of the guest that libvirt's driver for tests has."""


class AskTestCase(base.BaseTestCase):

    def test_runs(self):
        found = elsewhere.ask(['test:///default'], UUID, 60)
        self.assertEqual(elsewhere.Found(True, uri='test:///default'), found)

    def test_not_there(self):
        found = elsewhere.ask(['test:///default'], UUID.replace('6', '7'), 60)
        self.assertIs(False, found.runs)

    def test_address_that_leads_back(self):
        """As 127.0.0.1 does: the answer would be about the wrong libvirt."""
        script = self.useFixture(fixtures.TempDir()).join('python')
        with open(script, 'w') as f:
            f.write('#!/bin/sh\n[ "$6" = our-own ] && echo itself\n')
        os.chmod(script, 0o700)
        with mock.patch.object(sys, 'executable', script):
            found = elsewhere.ask(['x'], UUID, 60, own='our-own')
        self.assertEqual((None, True), (found.runs, found.itself))
        self.assertEqual('x leads to this host itself', found.why)

    def test_host_uuid(self):
        for document, expected in (
                ('', ''), ('<capabilities><host/></capabilities>', ''),
                ('<host><uuid>a</uuid>', 'a'),
                ('<host>\n    <uuid> a </uuid>', 'a'),
                ('<host><cpu/></host><guest><uuid>a</uuid></guest>', '')):
            self.assertEqual(expected, elsewhere.host_uuid(document),
                             document)

    def test_no_libvirt(self):
        uri = 'qemu+unix:///system?socket=/no/such/socket'
        found = elsewhere.ask([uri], UUID, 60)
        self.assertIsNone(found.runs)
        self.assertIn('/no/such/socket', found.why)
        # The next one is asked.
        self.assertTrue(elsewhere.ask([uri, 'test:///default'], UUID,
                                      60).runs)

    def test_nobody_to_ask(self):
        self.assertIsNone(elsewhere.ask([], UUID).runs)
        self.assertIsNone(elsewhere.ask(['no uri'], UUID, 60).runs)

    def test_process_that_ends_without_a_word(self):
        with mock.patch.object(sys, 'executable', '/bin/cat'):
            # It takes an option for a file that is not there, and ends.
            found = elsewhere.ask(['x'], UUID, 60)
        self.assertIsNone(found.runs)
        self.assertFalse(found.late)

    def test_process_that_cannot_be_started(self):
        with mock.patch.object(sys, 'executable', '/no/such/python'):
            found = elsewhere.ask(['x'], UUID, 60)
        self.assertIsNone(found.runs)
        self.assertIn('/no/such/python', found.why)
        with mock.patch.object(elsewhere.tempfile, 'TemporaryFile',
                               side_effect=OSError(28, 'No space left')):
            found = elsewhere.ask(['x'], UUID, 60)
        self.assertIn('No space left', found.why)

    def test_bounded(self):
        silent = self.useFixture(fixtures.TempDir()).join('silent')
        with open(silent, 'w') as f:
            f.write('#!/bin/sh\necho $$ >> $0.pids; exec sleep 600\n')
        os.chmod(silent, 0o700)
        started = time.monotonic()
        with mock.patch.object(sys, 'executable', silent):
            found = elsewhere.ask(['x', 'y', 'z'], UUID, 1)
        # For the three of them together.
        self.assertLess(time.monotonic() - started, 30)
        self.assertEqual((None, True), (found.runs, found.late))
        self.assertIn('did not answer within 1 s', found.why)
        with open(f'{silent}.pids') as f:
            for pid in f.read().split():
                self.assertRaises(ProcessLookupError, os.kill, int(pid), 0)

    def test_address_that_hangs_holds_up_no_other(self):
        script = self.useFixture(fixtures.TempDir()).join('python')
        with open(script, 'w') as f:
            f.write('#!/bin/sh\n[ "$4" = bad ] && exec sleep 600\n'
                    'echo runs\n')
        os.chmod(script, 0o700)
        with mock.patch.object(sys, 'executable', script):
            found = elsewhere.ask(['bad', 'good'], UUID, 60)
        self.assertEqual(elsewhere.Found(True, uri='good'), found)


class LookTestCase(base.BaseTestCase):

    def look(self, *state, active=True, own=''):
        domain = mock.Mock()
        domain.isActive.return_value = active
        domain.state.return_value = list(state)
        connection = mock.Mock()
        connection.lookupByUUIDString.return_value = domain
        connection.getCapabilities.return_value = (
            '<capabilities>\n  <host>\n    <uuid>theirs</uuid>')
        with mock.patch.object(libvirt, 'openReadOnly',
                               return_value=connection):
            found = elsewhere.look('uri', UUID, own)
        connection.close.assert_called_once_with()
        return found

    def test_states(self):
        self.assertEqual('runs', self.look(libvirt.VIR_DOMAIN_RUNNING, 1))
        for reason in (libvirt.VIR_DOMAIN_PAUSED_USER,
                       libvirt.VIR_DOMAIN_PAUSED_IOERROR,
                       libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED):
            self.assertEqual('runs', self.look(libvirt.VIR_DOMAIN_PAUSED,
                                               reason))
        for reason in (libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
                       libvirt.VIR_DOMAIN_PAUSED_STARTING_UP):
            self.assertTrue(self.look(libvirt.VIR_DOMAIN_PAUSED, reason)
                            .startswith('unknown '))
        self.assertEqual('shut-off', self.look(5, 1, active=False))

    def test_address_that_leads_back(self):
        for own, said in (('theirs', 'itself'), ('ours', 'runs'),
                          ('', 'runs')):
            self.assertEqual(said, self.look(
                libvirt.VIR_DOMAIN_RUNNING, 1, own=own))
