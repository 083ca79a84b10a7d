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

import html.parser
import json
import re

from lxml import etree
from oslotest import base

from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds
from nova_kvm_ext.fleet import page
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets


class PageTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.fleet = fit.Fleet(kinds.group([
            fleets.host('a1', kernel='6.1'), fleets.host('a2', kernel='6.12'),
            fleets.host('b', lacks=('sha-ni',)),
            fleets.host('<script>alert(1)</script>', 'Nehalem'),
            fleets.untold('d')]), hosts.MAP)
        self.text = page.render(
            self.fleet, {'a1': ['ssd', "it's <b>"], 'b': ['ssd']})
        self.page = etree.fromstring(self.text, etree.HTMLParser())
        # By vendor, and within one by the number of features.
        self.order = ['d', 'b', 'a1', '<script>alert(1)</script>']

    def cell(self, row, column):
        found, = self.page.xpath(
            f'//td[@data-r="{self.order.index(row)}"]'
            f'[@data-c="{self.order.index(column)}"]')
        return found

    def test_cells(self):
        for row, column, look, sign, words in (
                ('a1', 'a1', 'same', '=', 'the same kind'),
                ('a1', 'b', 'no no0', '1', 'no, lacks 1'),
                ('b', 'a1', 'one', '→', 'yes, and not back'),
                ('a1', 'd', 'unknown', '?', 'not known'),
                ('<script>alert(1)</script>', 'a1', 'no no0', '×', 'no')):
            found = self.cell(row, column)
            self.assertEqual((look, sign), (found.get('class'), found.text))
            self.assertTrue(found.get('aria-label').endswith(f': {words}'),
                            found.get('aria-label'))
        self.assertEqual('sha-ni', self.cell('a1', 'b').get('data-missing'))
        self.assertIsNone(self.cell('b', 'a1').get('data-missing'))

    def test_both_ways(self):
        there = fit.Answer(True, '')
        self.assertEqual('both', page._cell(there, there, False)['look'])
        back = page._cell(there, fit.Answer(None, ''), False)
        self.assertEqual(('one', 'yes; back is not known'),
                         (back['look'], back['words']))

    def test_shades(self):
        def look(missing, unknown=0):
            return page._cell(
                fit.Answer(False, '', ('x',) * missing, ('y',) * unknown),
                fit.Answer(True, ''), False)

        self.assertEqual(
            ['no no0', 'no no1', 'no no1', 'no no2', 'no no3', 'no no4'],
            [look(n)['look'] for n in (1, 2, 4, 5, 13, 41)])
        self.assertEqual(('no no1', '2'),
                         (look(1, 1)['look'], look(1, 1)['sign']))

    def test_totals(self):
        self.assertIn('of 12\npairs of kinds 1 can, 5 cannot,\n6 are not',
                      self.text)

    def test_kinds(self):
        rows = self.page.xpath('//table[@class="list"]/tbody/tr')
        names = {kind.hosts[0].host: name for name, kind in
                 kinds.named(self.fleet.kinds).items()}
        self.assertEqual([names[host] for host in self.order],
                         [row.find('th').text for row in rows])
        self.assertEqual('2', rows[2].find('td').text.strip())
        first = ' '.join(rows[2].itertext())
        self.assertIn('6.1 (1), 6.12 (1)', first)
        self.assertIn('AMD, x86-64-v3', first)
        self.assertEqual(["it's <b>", 'ssd'],
                         json.loads(rows[2].get('data-aggregates')))
        self.assertIn('a1 a2', rows[2].get('data-words'))

    def test_names_of_hosts_are_no_markup(self):
        self.assertEqual(1, len(self.page.xpath('//script')))
        self.assertIn('&lt;script&gt;alert(1)', self.text)

    def test_needs_no_network(self):
        self.assertEqual([], self.page.xpath('//@src | //@href | //link'))
        self.assertNotRegex(self.text, r'https?:|@import|url\(')

    def test_is_well_formed(self):
        # Every element that is opened is closed, in its order.
        open_now = []

        class Parser(html.parser.HTMLParser):
            def handle_starttag(self, tag, attrs):
                if tag not in ('meta', 'input'):
                    open_now.append(tag)

            def handle_endtag(self, tag):
                assert open_now.pop() == tag, tag

        Parser().feed(self.text)
        self.assertEqual([], open_now)

    def test_one_cell_takes_the_focus(self):
        self.assertEqual(1, len(self.page.xpath('//td[@tabindex="0"]')))
        self.assertEqual(
            len(self.order) ** 2, len(self.page.xpath('//td[@tabindex]')))

    def test_hosts_of_a_large_kind(self):
        fleet = fit.Fleet(kinds.group(
            [fleets.host(f'host{n:03}') for n in range(70)]), hosts.MAP)
        found = page.render(fleet)
        self.assertIn('host049 and 20 more', re.sub(r'\s+', ' ', found))
        # The filter finds them all.
        self.assertIn('host069', found)
