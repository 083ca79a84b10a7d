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

import json
import os
import stat
import threading
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext import counters
from nova_kvm_ext.metrics import counted
from nova_kvm_ext.metrics import names


class CountersTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.state = self.useFixture(fixtures.TempDir()).path
        self.file = counted.path(self.state, 'host/1')
        self.now = 0.0
        self.useFixture(fixtures.MockPatchObject(
            counters.time, 'monotonic', lambda: self.now))
        self.useFixture(fixtures.MockPatchObject(
            counters.atexit, 'register'))

    def opened(self) -> counters.Counters:
        found = counters.Counters()
        found.open(self.state, 'host/1')
        return found

    def refusals(self) -> dict[tuple[str, ...], int]:
        return counted.read(self.file).counters.get(names.REFUSALS.name, {})

    def test_a_name_cannot_leave_its_directory(self):
        self.assertEqual(
            os.path.join(self.state, 'kvm-ext-counters', 'of-host%2F1.json'),
            self.file)

    def test_goes_on_after_a_restart(self):
        first = self.opened()
        first.add(names.REFUSALS, 'mbr')
        first.observe(names.DOWNTIME, 0.3)
        first.flush()
        since = counted.read(self.file).since
        second = self.opened()
        second.add(names.REFUSALS, 'mbr')
        second.observe(names.DOWNTIME, 40)
        second.flush()
        found = counted.read(self.file)
        self.assertEqual({('mbr',): 2}, found.counters[names.REFUSALS.name])
        histogram = found.histograms[names.DOWNTIME.name]
        self.assertEqual((2, 1, 40.3), (
            sum(histogram.counts), histogram.counts[-1], histogram.total))
        self.assertEqual(since, found.since)

    def test_what_was_counted_before_it_is_opened(self):
        early = counters.Counters()
        early.add(names.REFUSALS, 'mbr')
        early.open(self.state, 'host/1')
        self.assertEqual({('mbr',): 1}, self.refusals())

    def test_opened_twice_counts_once(self):
        found = self.opened()
        found.add(names.REFUSALS, 'mbr')
        found.open(self.state, 'host/1')
        found.flush()
        self.assertEqual({('mbr',): 1}, self.refusals())

    def test_nothing_is_written_of_nothing(self):
        self.opened()
        self.assertEqual([], os.listdir(self.state))

    def test_written_once_a_second(self):
        found = self.opened()
        with mock.patch.object(counters, '_replace',
                               side_effect=counters._replace) as replace:
            for _ in range(100):
                found.add(names.REFUSALS, 'mbr')
            self.assertEqual(1, replace.call_count)
            self.now = 2.0
            found.add(names.REFUSALS, 'mbr')
            self.assertEqual(2, replace.call_count)
            found.flush()
            self.assertEqual(2, replace.call_count)
        self.assertEqual({('mbr',): 101}, self.refusals())

    def test_readable_and_whole(self):
        self.opened().add(names.REFUSALS, 'mbr')
        self.assertEqual(0o644, stat.S_IMODE(os.stat(self.file).st_mode))
        self.assertEqual(['of-host%2F1.json'],
                         os.listdir(os.path.dirname(self.file)))

    def test_labels_are_bounded(self):
        found = self.opened()
        for number in range(2000):
            found.add(names.REFUSALS, f'by tenant {number}')
            found.add(names.LOGGED, f'KVML{number}')
        found.flush()
        kept = counted.read(self.file).counters
        self.assertEqual({(names.OTHER,): 2000}, kept[names.REFUSALS.name])
        self.assertEqual(500, len(kept[names.LOGGED.name]))

    def test_a_directory_that_cannot_be_written(self):
        with open(os.path.join(self.state, 'kvm-ext-counters'), 'w'):
            found = self.opened()
        # Said once, and counted in its turn.
        said = self.useFixture(fixtures.MockPatchObject(
            counters.LOG, 'warning', side_effect=lambda *args: found.add(
                names.LOGGED, 'KVML902'))).mock
        for self.now in (1.0, 3.0, 5.0):
            found.add(names.REFUSALS, 'mbr')
        said.assert_called_once()
        os.unlink(os.path.join(self.state, 'kvm-ext-counters'))
        found.flush()
        self.assertEqual({('mbr',): 3}, self.refusals())

    def test_values_that_no_release_has_written(self):
        os.makedirs(os.path.dirname(self.file))
        with open(self.file, 'w') as f:
            json.dump({names.LOGGED.name: [
                [['KVML403'], 1], [['KVM101'], 2], [['by a tenant'], 3]]}, f)
        self.assertEqual(
            {('KVML403',): 1, ('KVM101',): 2, (names.OTHER,): 3},
            counted.read(self.file).counters[names.LOGGED.name])

    def test_a_file_that_is_none_of_ours(self):
        os.makedirs(os.path.dirname(self.file))
        name = names.REFUSALS.name
        for text in ('', '[]', '{', '[' * 100000, 'null', '{"since": "x"}',
                     json.dumps({name: 3}), json.dumps({name: [[1, 2, 3]]}),
                     json.dumps({name: [[['mbr'], 'x'], [['mbr', 'y'], 1]]}),
                     json.dumps({name: [[['mbr'], -1]]}),
                     '{"since": NaN, "%s": [[["mbr"], Infinity]]}' % name,
                     json.dumps({names.DOWNTIME.name: {'counts': [1]}}),
                     json.dumps({names.DOWNTIME.name: []})):
            with open(self.file, 'w') as f:
                f.write(text)
            found = counted.read(self.file)
            if found is not None:
                self.assertEqual(0, sum(
                    found.counters[name].values()), text)
                self.assertEqual({}, found.histograms)
            self.opened().add(names.REFUSALS, 'mbr')
            self.assertEqual({('mbr',): 1}, self.refusals(), text)
            os.unlink(self.file)

    def test_no_link_is_followed(self):
        os.makedirs(os.path.dirname(self.file))
        os.symlink('/etc/passwd', self.file)
        self.assertIsNone(counted.read(self.file))

    def test_threads(self):
        found = self.opened()

        def count() -> None:
            for _ in range(200):
                found.add(names.REFUSALS, 'mbr')

        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.flush()
        self.assertEqual({('mbr',): 1600}, self.refusals())
