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

"""The page of ``fleet matrix``, used in a real browser."""

import json
import os
import shutil
import subprocess

import fixtures
from lxml import etree
from oslotest import base

from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds
from nova_kvm_ext.fleet import page
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets

BROWSER = 'chromium'

# What a person does, and what the page has then. Runs in the page.
STEPS = r"""
const found = {};
const grid = document.querySelector('table.map');
const look = () => document.getElementById('look').textContent;
const focused = () => document.activeElement.getAttribute('aria-label');
const key = name => document.activeElement.dispatchEvent(
  new KeyboardEvent('keydown', {key: name, bubbles: true, cancelable: true}));
const type = (id, value, event) => {
  const field = document.getElementById(id);
  field.value = value;
  field.dispatchEvent(new Event(event, {bubbles: true}));
};
const shown = () => document.getElementById('shown').textContent;
const visible = () => Array.from(grid.querySelectorAll('td')).filter(
  td => td.getClientRects().length).length;

found.width = document.documentElement.scrollWidth <= innerWidth;
grid.querySelector('td[tabindex="0"]').focus();
found.first = focused();
key('ArrowRight'); found.right = focused(); found.details = look();
key('ArrowDown'); found.down = focused();
key('End'); found.end = focused();
key('ArrowRight'); found.edge = focused();
key('Home'); found.home = focused();
const cell = grid.querySelector('td.no');
cell.click(); found.clicked = look();
grid.querySelector('td.same').dispatchEvent(
  new MouseEvent('mouseover', {bubbles: true}));
found.kept = look() === found.clicked;
cell.click();
grid.querySelector('td.same').dispatchEvent(
  new MouseEvent('mouseover', {bubbles: true}));
found.followed = look() !== found.clicked;
found.all = [shown(), visible()];
type('filter', 'INTEL', 'input'); found.intel = [shown(), visible()];
type('filter', 'b1', 'input'); found.host = [shown(), visible()];
grid.querySelector('td[tabindex="0"]').focus(); found.focus = focused();
key('ArrowLeft'); found.alone = focused();
type('filter', 'nothing like this', 'input');
found.nothing = [shown(), visible()];
type('filter', '', 'input');
type('aggregate', 'ssd', 'change'); found.ssd = [shown(), visible()];
type('aggregate', '', 'change'); found.again = [shown(), visible()];
document.documentElement.setAttribute('data-found', JSON.stringify(found));
"""


class PageTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        if shutil.which(BROWSER) is None:
            reason = f'{BROWSER} is not installed'
            if os.environ.get(libvirtd.REQUIRE):
                self.fail(reason)
            self.skipTest(reason)
        self.directory = self.useFixture(fixtures.TempDir()).path

    def browse(self, text):
        """The document after a browser has opened it, and errors in it."""
        path = os.path.join(self.directory, 'page.html')
        with open(path, 'w', encoding='utf-8') as f:
            f.write(text)
        ended = subprocess.run(
            [BROWSER, '--headless', '--no-sandbox', '--disable-gpu',
             '--no-first-run', '--disable-background-networking',
             '--disable-component-update', '--disable-sync',
             '--enable-logging=stderr', '--window-size=1280,900',
             f'--user-data-dir={self.directory}/profile', '--dump-dom',
             f'file://{path}'],
            capture_output=True, text=True, timeout=240,
            env={**os.environ, 'HOME': self.directory})
        said = [line for line in ended.stderr.splitlines()
                if 'CONSOLE' in line]
        return etree.fromstring(ended.stdout, etree.HTMLParser()), said

    def test_used(self):
        fleet = fit.Fleet(kinds.group([
            fleets.host('a1'), fleets.host('a2'),
            fleets.host('b1', lacks=('sha-ni',)),
            fleets.host('c1', 'Nehalem'), fleets.untold('d1')]), hosts.MAP)
        text = page.render(fleet, {'a2': ['ssd'], 'c1': ['ssd', 'hdd']})
        found, said = self.browse(text.replace(
            '</body>', f'<script>{STEPS}</script></body>'))
        self.assertEqual([], said)
        got = json.loads(found.get('data-found'))
        name = {host: f'{kind.model}/{kind.digest[:4]}'
                for kind in fleet.kinds
                for host in [kind.hosts[0].host]}
        # By vendor and number of features: d1, b1, a1, c1.
        self.assertTrue(got['width'])
        self.assertEqual(f'{name["d1"]} to {name["d1"]}: the same kind',
                         got['first'])
        self.assertTrue(got['right'].startswith(
            f'{name["d1"]} to {name["b1"]}: not known'))
        self.assertIn('does not tell', got['details'])
        self.assertTrue(got['down'].startswith(
            f'{name["b1"]} to {name["b1"]}'))
        self.assertTrue(got['end'].startswith(
            f'{name["b1"]} to {name["c1"]}: no'))
        self.assertEqual(got['end'], got['edge'])
        self.assertTrue(got['home'].startswith(
            f'{name["b1"]} to {name["d1"]}'))
        self.assertIn(f'{name["b1"]} and {name["c1"]}', got['clicked'])
        self.assertTrue(got['kept'])
        self.assertTrue(got['followed'])
        self.assertEqual(['4 of 4 kinds shown', 16], got['all'])
        self.assertEqual(['1 of 4 kinds shown', 1], got['intel'])
        self.assertEqual(['1 of 4 kinds shown', 1], got['host'])
        self.assertEqual(f'{name["b1"]} to {name["b1"]}: the same kind',
                         got['focus'])
        self.assertEqual(got['focus'], got['alone'])
        self.assertEqual(['0 of 4 kinds shown', 0], got['nothing'])
        self.assertEqual(['2 of 4 kinds shown', 4], got['ssd'])
        self.assertEqual(got['all'], got['again'])

    def test_sixty_kinds(self):
        names = sorted(hosts.MAP.models['EPYC'] - hosts.MAP.models['kvm64'])
        # Any two features taken away are another kind.
        pairs = [(a, b) for a in names for b in names if a < b][:60]
        fleet = fit.Fleet(kinds.group([
            fleets.host(f'host{n}', lacks=pair)
            for n, pair in enumerate(pairs)]), hosts.MAP)
        self.assertEqual(60, len(fleet.kinds))
        found, said = self.browse(page.render(fleet).replace(
            '</body>', f'<script>{STEPS}</script></body>'))
        self.assertEqual([], said)
        got = json.loads(found.get('data-found'))
        self.assertEqual(['60 of 60 kinds shown', 3600], got['all'])
        # The table scrolls in its own frame, not the page.
        self.assertTrue(got['width'])
