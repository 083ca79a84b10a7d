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

"""The benchmarks' results as a part of the documentation.

``tools/bench --document`` makes two plots and the tables of what
``tools/bench --save`` has left in ``doc/source/admin/performance``:
``nova-NN.json`` of each release of Nova, ``soak.json`` of the months.
"""

from collections.abc import Iterator
import glob
import json
import os
import re
from typing import Any

from nova_kvm_ext.tests import bench_dense

PLACE = 'doc/source/admin/performance'

_COLOURS = {'LibvirtDriver': '#b5651d', 'KVMDriver': '#1f5f8b'}


def results(place: str = PLACE) -> dict[str, Any]:
    """What was measured, by release of Nova."""
    found = {}
    for path in glob.glob(os.path.join(place, 'nova-*.json')):
        number = re.search(r'nova-(\d+)\.json$', path)
        if number:
            with open(path) as f:
                found[number[1]] = json.load(f)
    return dict(sorted(found.items()))


def soak(place: str = PLACE) -> dict[str, list[tuple[int, float]]]:
    """MiB against boots, by driver."""
    curves: dict[str, list[tuple[int, float]]] = {}
    try:
        with open(os.path.join(place, 'soak.json')) as f:
            told = json.load(f)['told']
    except FileNotFoundError:
        return {}
    for line in told:
        if 'boots' in line:
            curves.setdefault(line['driver'], []).append(
                (line['boots'], line['MiB']))
    return {name: sorted(curve) for name, curve in curves.items()}


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a list-table."""
    yield from ('.. list-table::', '   :header-rows: 1', '')
    for row in rows:
        for column, cell in enumerate(row):
            yield f'   {"  " if column else "* "}- {cell}'.rstrip()
    yield ''


def text(found: dict[str, Any]) -> str:
    """The part of the page that has the results, in reStructuredText."""
    lines = ['.. Made by tools/bench --document. Do not edit.', '']
    for number, result in found.items():
        machine = result['machine']
        title = f'Nova {number}'
        lines += [
            title, '~' * len(title), '',
            f'{result["date"]}, Nova {result["nova"]}, libvirt '
            f'{machine["libvirt"]}, QEMU {machine["qemu"]}, Python '
            f'{machine["python"]}; {machine["CPUs"]} CPUs '
            f'({machine["processor"]}), {machine["memory"]}, Linux '
            f'{machine["kernel"]}. The load average was '
            f'{" to ".join(str(load) for load in result["load"])}.', '']
        lines += table(list(bench_dense.rows(result)))
    return '\n'.join(lines)


def draw(found: dict[str, Any], curves: dict[str, list[tuple[int, float]]],
         place: str = PLACE) -> None:
    """The plots, as SVG."""
    import matplotlib
    matplotlib.use('svg')
    # The same file for the same results.
    matplotlib.rcParams |= {'svg.hashsalt': 'nova-kvm-ext',
                            'svg.fonttype': 'none', 'font.size': 9}
    from matplotlib import pyplot

    def save(figure: Any, name: str) -> None:
        figure.savefig(os.path.join(place, name), metadata={'Date': None})
        pyplot.close(figure)

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout='constrained')
    for number, result in found.items():
        for driver, colour in _COLOURS.items():
            points = sorted(
                (int(guests), bench_dense.median(
                    actions['periodic update'][driver], 'wall'))
                for guests, actions in result['guests'].items()
                if driver in actions.get('periodic update', {}))
            if not points:
                continue
            axes.loglog(*zip(*points), 'o-', color=colour, alpha=0.8,
                        label=driver if number == max(found) else None)
            axes.annotate(number, points[-1], xytext=(6, -3),
                          textcoords='offset points', color=colour)
    axes.axhline(60, color='grey', linestyle=':', linewidth=1)
    axes.annotate('the update is due each minute', (42, 60),
                  xytext=(0, 4), textcoords='offset points', color='grey')
    axes.set_xlabel('guests with one qcow2 disk each')
    axes.set_ylabel('one periodic update, s')
    axes.set_xticks([40, 100, 200, 400], ['40', '100', '200', '400'])
    axes.minorticks_off()
    axes.legend()
    save(figure, 'update.svg')

    if curves:
        figure, axes = pyplot.subplots(figsize=(7, 3), layout='constrained')
        for driver, curve in curves.items():
            axes.plot(*zip(*curve), color=_COLOURS[driver], label=driver)
        axes.set_xlabel('boots and deletes')
        axes.set_ylabel('memory of the process, MiB')
        axes.legend()
        save(figure, 'memory.svg')


def write(place: str = PLACE) -> None:
    """Make all of it again.

    :raises FileNotFoundError: there are no results
    """
    found = results(place)
    if not found:
        raise FileNotFoundError(f'{place} has no nova-*.json')
    with open(os.path.join(place, 'results.inc'), 'w') as f:
        f.write(text(found))
    draw(found, soak(place), place)
