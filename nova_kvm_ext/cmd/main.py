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

"""The ``nova-kvm-ext`` command.

Finds the commands among this package's entry points and runs one. Commands
parse, call, print and give an exit code; nothing imports them.
"""

import sys

from cliff import app
from cliff import commandmanager
from pbr import version

from nova_kvm_ext.host import facts
from nova_kvm_ext.host import install


class NovaKVMExt(app.App):
    """Boot and check KVM guests with the code that Nova runs."""

    def __init__(self) -> None:
        super().__init__(
            description=self.__doc__,
            version=version.VersionInfo('nova-kvm-ext').version_string(),
            command_manager=commandmanager.CommandManager(
                'nova_kvm_ext.commands'),
            deferred_help=True)

    def prepare_to_run_command(self, cmd: object) -> None:
        problem = install.check(facts.read_install())
        if problem is not None:
            print(f'warning: {problem}', file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    return NovaKVMExt().run(sys.argv[1:] if argv is None else argv)


if __name__ == '__main__':
    sys.exit(main())
