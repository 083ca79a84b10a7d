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

"""The matrix of a fleet as a page: one HTML file that needs no network.

All data of the page is in its table, which a screen reader and a browser
without scripts can read; the script adds a check of one pair of kinds, and the
filter. Names of hosts come from an operator, and are escaped anyway.
"""

from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

import jinja2

from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds

# Which of five shades a refusal has: the more features, the darker.
_SHADES = (1, 4, 12, 40)
_NAMED_HOSTS = 50


def render(fleet: fit.Fleet,
           aggregates: Mapping[str, Collection[str]] | None = None) -> str:
    """The page.

    :param aggregates: names of host aggregates by name of host
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('nova_kvm_ext.fleet', '.'),
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined)
    names = list(kinds.named(fleet.kinds))
    matrix = fleet.matrix()
    # By vendor and, as CPUs grow, by age: then what can move lies together.
    order = sorted(range(len(names)), key=lambda at: (
        fleet.kinds[at].vendor or '',
        len(fleet.kinds[at].cpu.features or ()), names[at]))
    return environment.get_template('page.html.j2').render(
        kinds=[_kind(names[at], fleet.kinds[at], aggregates or {})
               for at in order],
        rows=[[_cell(matrix[row][column], matrix[column][row],
                     row == column) for column in order] for row in order],
        hosts=sum(kind.count for kind in fleet.kinds),
        totals=_totals(matrix))


def _totals(matrix: tuple[tuple[fit.Answer, ...], ...]) -> dict[str, int]:
    """How many pairs of different kinds have which answer."""
    pairs = [answer.possible for row, answers in enumerate(matrix)
             for column, answer in enumerate(answers) if row != column]
    return {'yes': pairs.count(True), 'no': pairs.count(False),
            'unknown': pairs.count(None)}


def _kind(name: str, kind: kinds.Kind,
          aggregates: Mapping[str, Collection[str]]) -> dict[str, Any]:
    hosts = [host.host for host in kind.hosts]
    return {
        'name': name, 'count': kind.count,
        'vendor': kind.vendor or 'vendor not known',
        'level': kind.level or 'no level',
        'versions': {of: ', '.join(
            f'{value} ({number})' if number != kind.count else value
            for value, number in kind.versions(of).items())
            for of in kinds.VARYING},
        'hosts': hosts[:_NAMED_HOSTS],
        'more': max(0, len(hosts) - _NAMED_HOSTS),
        'aggregates': sorted({name for host in hosts
                              for name in aggregates.get(host, ())}),
        # What the filter looks in.
        'words': ' '.join(hosts).lower()}


def _cell(there: fit.Answer, back: fit.Answer, same: bool) -> dict[str, Any]:
    """One pair, from the kind of the row to the kind of the column."""
    lacks = len(there.missing) + len(there.unknown)
    if same:
        look, sign, words = 'same', '=', 'the same kind'
    elif there.possible:
        look, sign, words = (
            ('both', '⇄', 'yes, and back') if back.possible else
            ('one', '→', 'yes, and not back') if back.possible is False else
            ('one', '→', 'yes; back is not known'))
    elif there.possible is None:
        look, sign, words = 'unknown', '?', 'not known'
    else:
        shade = sum(lacks > limit for limit in _SHADES)
        look, sign, words = f'no no{shade}', str(lacks or '×'), 'no'
    return {'look': look, 'sign': sign, 'words': words,
            'reason': there.reason, 'missing': there.missing,
            'unknown': there.unknown}
