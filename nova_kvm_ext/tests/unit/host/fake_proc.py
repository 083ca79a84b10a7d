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

"""A directory that looks like /proc."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import shutil

import fixtures


class FakeProc(fixtures.Fixture):
    """Processes as proc(5) shows them.

    :ivar path: of the directory
    """

    def _setUp(self) -> None:
        self.path = self.useFixture(fixtures.TempDir()).path
        self._links('self', 'mnt:[1]', 'user:[1]')

    def clear(self) -> None:
        """End all processes."""
        for name in os.listdir(self.path):
            if name.isdecimal():
                shutil.rmtree(os.path.join(self.path, name))

    def add(self, pid: int, words: Sequence[str], *,
            environment: Mapping[str, str] | None = None,
            uid: int | None = None, groups: Sequence[int] = (),
            directory: str = '/', root: str = '/',
            mount: str | None = 'mnt:[1]',
            users: str | None = 'user:[1]') -> None:
        """Start a process.

        :param mount: its mount namespace, None where nobody may see it
        :param users: its user namespace likewise
        """
        uid = os.geteuid() if uid is None else uid
        self._links(str(pid), mount, users)
        where = os.path.join(self.path, str(pid))
        os.symlink(directory, os.path.join(where, 'cwd'))
        os.symlink(root, os.path.join(where, 'root'))
        with open(os.path.join(where, 'cmdline'), 'w') as f:
            f.write(''.join(f'{word}\0' for word in words))
        with open(os.path.join(where, 'environ'), 'w') as f:
            f.write(''.join(f'{name}={value}\0' for name, value in
                            (environment or {}).items()))
        with open(os.path.join(where, 'status'), 'w') as f:
            f.write(f'Name:\tx\nUid:\t1\t{uid}\t3\t4\n'
                    f'Gid:\t1\t{uid}\t3\t4\n'
                    f'Groups:\t{" ".join(map(str, groups))} \n')

    def _links(self, name: str, mount: str | None,
               users: str | None) -> None:
        where = os.path.join(self.path, name, 'ns')
        os.makedirs(where)
        for link, target in (('mnt', mount), ('user', users)):
            if target is not None:
                os.symlink(target, os.path.join(where, link))
