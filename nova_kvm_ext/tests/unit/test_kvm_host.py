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

import ast
import pathlib

from oslotest import base

from nova_kvm_ext.tests import kvm

_PACKAGE = pathlib.Path(kvm.__file__).parent


def _novas(path: pathlib.Path) -> list[str]:
    """The modules of Nova that a module imports, in order."""
    imported: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(node.module or '')
    return [name for name in imported if name.partition('.')[0] == 'nova']


class ImportsTestCase(base.BaseTestCase):

    def test_nova_compute_first(self) -> None:
        """Its import fails where eventlet was imported before it (Nova 34).

        stestr imports test_driver first, so that no test of the package could
        be found then.
        """
        first = {path.stem: novas[0]
                 for path in sorted(_PACKAGE.glob('*.py'))
                 if (novas := _novas(path))}
        self.assertIn('test_driver', first)
        self.assertEqual({'nova.cmd.compute'}, set(first.values()),
                         str(first))
