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
import io
import struct
from typing import Any

import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext.images import qed
from nova_kvm_ext.tests.unit.images import corpus

CLUSTER = 4096


def image(clusters: int = 16, first: tuple[int, ...] = (),
          second: tuple[int, ...] = (), **header: Any) -> bytes:
    """Clusters: 0 header, 1 and 2 L1 table, 3 and 4 an L2 table, then data."""
    values = {
        'cluster': CLUSTER, 'table': 2, 'l1': CLUSTER, 'size': 1 << 20}
    data = bytearray(clusters * CLUSTER)
    for offset, part in (
            (0, corpus.qed(**values | header)),
            (CLUSTER, struct.pack(f'<{len(first)}Q', *first)),
            (3 * CLUSTER, struct.pack(f'<{len(second)}Q', *second))):
        data[offset:offset + len(part)] = part
    return bytes(data)


class WithinBounds(io.BytesIO):
    """A file that notices reads before it or past it."""

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0 and 0 <= offset <= len(self.getbuffer())
        return super().seek(offset)


def check(data: bytes) -> qed.Image:
    return qed.check(WithinBounds(data), len(data))


class QEDTestCase(base.BaseTestCase):

    def refused(self, name: str, data: bytes) -> str:
        error = self.assertRaises(qed.QEDError, check, data)
        self.assertEqual(name, error.check)
        return str(error)

    def test_sound(self):
        found = check(image(
            first=(3 * CLUSTER,), second=(5 * CLUSTER, 0, 1, 6 * CLUSTER)))
        self.assertEqual(2 * CLUSTER, found.allocated)
        self.assertEqual(1 << 20, found.header.image_size)

    def test_empty_disk(self):
        self.assertEqual(0, check(image()).allocated)

    def test_bounds_of_the_format(self):
        values: Any
        for values in (dict(cluster=1 << 12, l1=1 << 12),
                       dict(cluster=1 << 26, l1=1 << 26),
                       dict(table=1), dict(table=16)):
            qed.parse_header(corpus.qed(**values), 1 << 31)
        for name, values in (
                ('cluster_size', dict(cluster=1 << 11)),
                ('cluster_size', dict(cluster=1 << 27)),
                ('cluster_size', dict(cluster=4097)),
                ('table_size', dict(table=0)), ('table_size', dict(table=3)),
                ('table_size', dict(table=32)),
                ('header_size', dict(header=0)),
                ('header_size', dict(header=17)),
                ('image_size', dict(size=0)),
                ('image_size', dict(size=513)),
                ('image_size', dict(size=(1024 * 1024 * CLUSTER) + 512)),
                ('l1_table_offset', dict(l1=0)),
                ('l1_table_offset', dict(l1=4097)),
                ('l1_table_offset', dict(header=2)),
                ('file size', dict(l1=15 * CLUSTER)),
                ('file size', dict(l1=1 << 62))):
            self.refused(name, image(**values))

    def test_largest_disk(self):
        check(image(size=1024 * 1024 * CLUSTER))

    def test_features(self):
        values: Any
        for name, values in (
                ('backing_file', dict(features=1)),
                ('backing_file', dict(features=7)),
                ('need_check', dict(features=2)),
                # What is said of a backing file, where there is none.
                ('features', dict(features=4)),
                ('features', dict(features=8)),
                ('compat_features', dict(compat=1)),
                ('autoclear_features', dict(autoclear=1 << 40))):
            self.refused(name, image(**values))

    def test_tables(self):
        for name, l1, l2 in (
                ('tables', (3 * CLUSTER + 8,), ()),
                ('tables', (CLUSTER,), ()),
                ('tables', (2 * CLUSTER,), ()),
                ('tables', (0, 3 * CLUSTER), ()),
                ('file size', (15 * CLUSTER,), ()),
                ('file size', (1 << 63,), ()),
                ('tables', (3 * CLUSTER,), (2,)),
                ('tables', (3 * CLUSTER,), (0, 4 * CLUSTER)),
                ('tables', (3 * CLUSTER,), (5 * CLUSTER, 5 * CLUSTER)),
                ('file size', (3 * CLUSTER,), (16 * CLUSTER,)),
                ('tables', (3 * CLUSTER,), (0,) * 256 + (5 * CLUSTER,))):
            self.refused(name, image(first=l1, second=l2))

    def test_cut_anywhere(self):
        data = image(clusters=6, first=(3 * CLUSTER,),
                     second=(5 * CLUSTER,))
        check(data)
        for length in [*range(0, 80), *range(CLUSTER, len(data), 509)]:
            self.assertRaises(qed.QEDError, check, data[:length])

    def test_tables_beyond_bounds_are_not_read(self):
        class Huge(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                assert size is not None and 0 <= size <= 1 << 20
                return super().read(size)

        header = corpus.qed(cluster=1 << 26, table=16, l1=1 << 26)
        error = self.assertRaises(
            qed.QEDError, qed.check, Huge(header), 1 << 40)
        self.assertIn('256 MiB', str(error))

    @hypothesis.settings(max_examples=400, deadline=None)
    @hypothesis.given(strategies.data())
    def test_mutations(self, data):
        """Whatever the bytes: a verdict, and no read outside the file."""
        mutated = bytearray(image(
            first=(3 * CLUSTER,), second=(5 * CLUSTER, 1, 6 * CLUSTER)))
        places = strategies.sampled_from(
            [*range(72), *range(CLUSTER, CLUSTER + 32),
             *range(3 * CLUSTER, 3 * CLUSTER + 32)])
        for place, value in data.draw(strategies.lists(strategies.tuples(
                places, strategies.integers(0, 255)), max_size=8)):
            mutated[place] = value
        length = data.draw(strategies.one_of(
            strategies.just(len(mutated)),
            strategies.integers(0, len(mutated))))
        try:
            found = check(bytes(mutated[:length]))
        except qed.QEDError:
            return
        # What passes is inside the file, once.
        self.assertLessEqual(found.allocated, length)
