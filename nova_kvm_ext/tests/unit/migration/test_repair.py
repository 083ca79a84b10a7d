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

import dataclasses

from oslotest import base

from nova_kvm_ext.migration import repair

SRC, DST = 'source', 'destination'


def server(**more):
    return dataclasses.replace(repair.Server(
        'u', SRC, 'active',
        migration=repair.Migration('m', SRC, DST, 'error')), **more)


class RefusalTestCase(base.BaseTestCase):

    def check(self, words, found, runs=True, busy=False, here=DST):
        said = repair.refusal(found, here, runs, busy)
        if words:
            self.assertIn(words, said)
        else:
            self.assertEqual('', said)

    def test_this_fault(self):
        for status in ('error', 'failed', 'cancelled', 'completed',
                       # It stays so where nova-compute was killed.
                       'running (post-copy)'):
            self.check('', server(migration=repair.Migration(
                'm', SRC, DST, status)))
        # Its files and records may be left still.
        self.check('', server(), runs=False)

    def test_every_state_of_one_that_has_not_ended(self):
        for status in ('running', 'preparing', 'pre-migrating',
                       'post-migrating', 'accepted', 'queued'):
            self.check('not ended the live migration', server(
                migration=repair.Migration('m', SRC, DST, status)))

    def test_long_words(self):
        """Nova's records have them, and others may write these."""
        for length, host in ((80, 'x' * 80), (81, 'x' * 77 + '...')):
            self.check(f'was not from {host}, where', server(
                host='x' * length))
        for length, task in ((40, 'x' * 40), (41, 'x' * 37 + '...')):
            self.check(f'a task with the server ({task})', server(
                task='x' * length))

    def test_another_case(self):
        self.check('nothing to bring back', server(), here=SRC)
        self.check('a task with the server (migrating)',
                   server(task='migrating'))
        self.check('a task with the server (migrating)', server(
            task='migrating', migration=repair.Migration(
                'm', SRC, DST, 'running (post-copy)')))
        self.check('was not from source', server(migration=None))
        for source, destination in (('x', DST), (SRC, 'x'), (DST, SRC)):
            self.check('was not from source', server(
                migration=repair.Migration('m', source, destination,
                                           'error')))
        self.check('not ended the live migration', server(
            migration=repair.Migration('m', SRC, DST, 'running')))
        self.check('another job', server(), busy=True)
        self.check('on no host', server(host=''))

    def test_qemu_that_hangs(self):
        for runs, words in ((True, 'QEMU of the guest does not answer'),
                            (False, '')):
            said = repair.refusal(server(), DST, runs, hangs=True)
            self.assertEqual(bool(words), words in said and bool(said))

    def test_post_copy_that_failed(self):
        """Ending either of the two loses the guest's memory."""
        said = repair.refusal(server(), DST, True, torn=True)
        self.assertIn(f'Do not end it on {SRC}', said)
        self.assertIn('--postcopy-resume u ', said)
        self.assertEqual('', repair.refusal(server(), DST, False, torn=True))


class StepsTestCase(base.BaseTestCase):

    def test_move(self):
        for here, there, needed, words in (
                (True, False, True, 'where it does not run'),
                (True, None, True, 'could not be asked (no route)'),
                (True, True, None, 'two guests'),
                (False, True, False, 'already'),
                (False, None, None, 'not known: no route'),
                (False, False, None, 'neither here nor')):
            step = repair.move(server(), here, there, 'no route', 'virsh')
            self.assertIs(needed, step.needed, words)
            self.assertIn(words, step.why)

    def test_guest_that_is_shut_off_here(self):
        # A start on its host would be one from an old disk.
        step = repair.move(server(), False, False, '', 'virsh', True)
        self.assertIsNone(step.needed)
        self.assertIn('shut off here', step.why)
        self.assertEqual(f'virsh start {server().uuid}', step.by_hand)
        self.assertFalse(
            repair.move(server(), False, True, '', 'virsh', True).needed)

    def test_files(self):
        whole = repair.Files('/i/u', True)
        for files, here, there, needed in (
                (repair.Files(), False, True, False),
                (whole, False, True, True),
                (whole, False, None, None), (whole, False, False, None),
                (whole, True, True, None), (whole, None, True, None),
                (repair.Files('/i/u', False), False, True, False),
                (repair.Files('/i/u', None), False, True, None),
                (repair.Files('/i/u', True, ['disk']), False, True, None)):
            step = repair.files(files, here, there)
            self.assertIs(needed, step.needed, str((files, here, there)))
        self.assertEqual('rm -r /i/u', step.by_hand)
        for local, words, by_hand in (
                (False, 'is shared with other hosts', ''),
                (None, 'is not known', 'rm -r /i/u')):
            step = repair.files(repair.Files('/i/u', local), False, True)
            self.assertIn(words, step.why)
            self.assertEqual(by_hand, step.by_hand)

    def test_allocations(self):
        cut = repair.Allocations(frozenset({DST}), frozenset({SRC}))
        mended = repair.Allocations(frozenset({SRC}))
        odd = repair.Allocations(frozenset({DST, SRC}), frozenset({SRC}))
        for found, there, needed in (
                (cut, True, True), (cut, None, None), (cut, False, None),
                (mended, None, False), (odd, True, None),
                (repair.Allocations(frozenset({DST})), True, None),
                (repair.Allocations(unknown='503'), True, None)):
            step = repair.allocations(server(), DST, found, there)
            self.assertIs(needed, step.needed, str((found, there)))

    def test_bindings(self):
        def ports(host=SRC, **others):
            return [repair.Port('p', host, others),
                    repair.Port('q', SRC)]

        for found, needed, going in (
                (ports(destination='INACTIVE'), True, ('p',)),
                (ports(destination='DOWN'), True, ('p',)),
                (ports(another='INACTIVE'), False, ()), ([], False, ()),
                (ports(destination='ACTIVE'), None, ()),
                (ports(host=DST, destination='INACTIVE'), None, ()),
                (None, None, ())):
            for there in (True, False, None):
                step, back, gone = repair.bindings(
                    server(), DST, found, there, '403')
                self.assertEqual((needed, (), going),
                                 (step.needed, back, gone), str(found))

    def test_bindings_that_have_moved(self):
        """As at a switch to post-copy: the guest has no network here."""
        moved = [repair.Port('p', DST, {SRC: 'INACTIVE'}),
                 repair.Port('q', SRC, {DST: 'INACTIVE'}),
                 repair.Port('r', SRC)]
        for there, needed, back, going in (
                (True, True, ('p',), ('p', 'q')),
                (False, None, (), ()), (None, None, (), ())):
            step, *said = repair.bindings(server(), DST, moved, there)
            self.assertEqual((needed, [back, going]), (step.needed, said))
            self.assertIn(f'bindings/{SRC}/activate', step.by_hand)
        # There is none to go back to.
        step, *said = repair.bindings(
            server(), DST, [repair.Port('p', DST)], True)
        self.assertEqual((None, [(), ()]), (step.needed, said))
        self.assertIn('bound to destination, and not to source', step.why)

    def test_volumes(self):
        has = server(volumes=('v', 'w'))
        for hosts, needed, words, which in (
                ({'v': SRC, 'w': SRC}, False, 'attached to source', None),
                ({'v': SRC, 'w': DST}, None, '1 volume(s) are attached to '
                 'destination', 'for w'),
                ({'v': SRC, 'w': ''}, None, 'does not say', 'for v, w'),
                ({'v': 'another', 'w': SRC}, None, 'does not say', 'for v, w'),
                (None, None, '403', 'for v, w')):
            step = repair.volumes(has, DST, hosts, '403')
            self.assertIs(needed, step.needed)
            self.assertIn(words, step.why)
            if which:
                self.assertTrue(step.by_hand.endswith(which), step.by_hand)

    def test_state(self):
        for state, there, needed in (
                ('active', True, False), ('error', True, True),
                ('error', None, None), ('error', False, None),
                ('stopped', True, False)):
            self.assertIs(needed, repair.state(
                server(state=state), there).needed, state)
