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

"""Which unit tests may turn out otherwise with another release of Nova.

``tools/run-tests`` runs all unit tests with the newest Nova, and with each
other one the modules that this prints, as a regular expression for stestr:
those that import Nova, or a library that its releases pin, themselves or
through a module of this package.
"""

import ast
import functools
import pathlib
import re
import sys

_TOP = pathlib.Path(__file__).parents[2]
_TESTS = 'nova_kvm_ext.tests.unit.'

# Libraries that have the same version with each Nova, or of which nothing is
# used that differs.
_SAME = {'fixtures', 'hypothesis', 'libvirt', 'libvirt_qemu', 'lxml',
         'oslotest', 'testtools', 'yaml'}


def _modules() -> dict[str, pathlib.Path]:
    """Path by name of every module of this package."""
    found = {}
    for path in sorted(_TOP.glob('nova_kvm_ext/**/*.py')):
        name = '.'.join(path.relative_to(_TOP).with_suffix('').parts)
        found[name.removesuffix('.__init__')] = path
    return found


def _imports(path: pathlib.Path) -> set[str]:
    """What a module imports, anywhere: names of modules, or things in them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or '', *(
                f'{node.module}.{alias.name}' for alias in node.names)}
    return names


@functools.cache
def needed() -> tuple[list[str], list[str]]:
    """The modules of unit tests that may differ with Nova, and the others."""
    modules = _modules()
    imports = {name: _imports(path) for name, path in modules.items()}
    differ = {
        name for name, imported in imports.items() if any(
            (top := each.partition('.')[0]) and top != 'nova_kvm_ext' and
            top not in sys.stdlib_module_names and top not in _SAME
            for each in imported)}
    more = differ
    while more:
        more = {name for name in imports.keys() - differ
                if imports[name] & differ}
        differ |= more
    tests = {name for name in modules if name.startswith(_TESTS) and
             name.rpartition('.')[2].startswith('test_')}
    return sorted(tests & differ), sorted(tests - differ)


def expression() -> str:
    """The regular expression of the tests that may differ with Nova."""
    return f'^({"|".join(map(re.escape, needed()[0]))})\\.'


if __name__ == '__main__':
    print(expression())
