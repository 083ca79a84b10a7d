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

from importlib import metadata
import inspect
import sys

from cliff import app
from cliff import commandmanager
from cliff import help as cliff_help

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    from nova_kvm_ext.host import door
    from nova_kvm_ext.host import install

_PACKAGE = 'nova-kvm-ext'

# What argparse and cliff end with where the command line is wrong.
_THEIRS = (1, 2)


class _Commands(commandmanager.CommandManager):
    """The commands of this package, without a check of all that is there."""

    def load_commands(self, namespace: str) -> None:
        for entry in metadata.distribution(_PACKAGE).entry_points.select(
                group=namespace):
            self.commands[entry.name.replace('_', ' ')] = entry


class NovaKVMExt(app.App):
    """Boot and check KVM guests with the code that Nova runs."""

    def __init__(self) -> None:
        super().__init__(
            description=self.__doc__, version=metadata.version(_PACKAGE),
            command_manager=_Commands('nova_kvm_ext.commands'),
            deferred_help=True)

    def print_help_if_requested(self) -> None:
        """As cliff's, which reads all that is installed to name packages."""
        if not self.options.deferred_help:
            return
        self.parser.print_help(self.stdout)
        self.stdout.write('\nCommands:\n')
        for name, entry in sorted(self.command_manager):
            first, _, _ = (inspect.getdoc(entry.load()) or '').partition('\n')
            self.stdout.write(f'  {name:<13}  {first.rstrip(".")}\n')
        raise cliff_help.HelpExit()

    def run(self, argv: list[str]) -> int:
        """The command's exit code; argparse's and cliff's own are replaced."""
        self._began = False
        try:
            code = super().run(argv)
        except cliff_help.HelpExit:
            return ExitCode.PASS
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0
            return ExitCode.UNKNOWN if code in _THEIRS else code
        return ExitCode.UNKNOWN if not self._began and code in _THEIRS else (
            code)

    def prepare_to_run_command(self, cmd: object) -> None:
        if not isinstance(cmd, base.Command):
            return
        self._began = True
        problem = install.check(door.read_install())
        if problem is not None:
            print(f'warning: {problem}', file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return int(NovaKVMExt().run(['--help'] if argv == ['help'] else argv))


if __name__ == '__main__':
    sys.exit(main())
