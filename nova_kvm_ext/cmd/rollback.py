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

"""``nova-kvm-ext-status rollback check``: what to repair before a rollback.

Run it on a compute host before ``compute_driver`` is LibvirtDriver again, and
once more after. ``--os-cloud`` alone checks what is left in the cloud. Output
and exit codes are those of ``upgrade check``.
"""

from collections.abc import Callable
from collections.abc import Iterable
import contextlib
import os
import shlex
import sys
from typing import Any

from nova import conf as nova_conf
from oslo_upgradecheck import upgradecheck

from nova_kvm_ext.cmd import base
from nova_kvm_ext import conf
from nova_kvm_ext.cpu import choose
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import cloud as clouds
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.rollback import cloud as reader
from nova_kvm_ext.rollback import traces
from nova_kvm_ext.settings import Settings

Code = upgradecheck.Code
Result = upgradecheck.Result

_FILTER = 'KVMExtCPUFilter'
_STATE_FILES = 'kvm-ext-'
_LEDGER = 'kvm-ext-frozen'
_NAMED = 10
_NO_CLOUD = ('Not checked: name the cloud with --os-cloud, a cloud of '
             'clouds.yaml with the credentials of an administrator.')


class Checks(upgradecheck.UpgradeCommands):
    """What LibvirtDriver does not know, on this host and in the cloud."""

    display_title = 'nova-kvm-ext rollback check results'

    def __init__(self) -> None:
        self.commands: list[str] = []
        """What removes what was found, a line for a shell each."""
        self._connection: Any = None
        self._nova = nova_conf.CONF
        # Where the ledger cannot be read, one may be frozen.
        self._owes_a_thaw = True

    def _cloud(self) -> Any:
        """The connection; None without --os-cloud."""
        name = self._nova.command.os_cloud
        if self._connection is None and name:
            self._connection = clouds.connect(name)
        return self._connection

    def _left(self, found: Iterable[traces.Trace], code: Code,
              then: str) -> Result:
        """Traces as a result, their commands among :attr:`commands`."""
        left = tuple(found)
        if not left:
            return Result(Code.SUCCESS)
        self.commands += [
            trace.command for trace in left if trace.command]
        said = '; '.join(trace.what for trace in left[:_NAMED])
        more = len(left) - _NAMED
        return Result(code, said + (
            f' and {more} more' if more > 0 else '') + f'. {then}')

    def _frozen(self) -> Result:
        """Guests whose thaw is still owed: LibvirtDriver thaws none."""
        nova = self._nova
        try:
            frozen = ledger.Ledger(nova.state_path, nova.host).left_behind()
        except OSError as e:
            return Result(
                Code.WARNING, f'Whether a guest is frozen cannot be read in '
                f'{nova.state_path}: {e.strerror}. Run this as root.')
        self._owes_a_thaw = bool(frozen)
        return self._left(
            (traces.Trace(f'guest {uuid} is frozen',
                          f'nova-kvm-ext agent thaw {uuid}')
             for uuid in frozen), Code.FAILURE,
            'LibvirtDriver never thaws them; thaw them before.')

    def _options(self) -> Result:
        """What the guests of LibvirtDriver would get instead."""
        nova = self._nova
        try:
            settings = Settings.from_conf(nova)
            choice = choose.as_configured(settings)
        except errors.KVMExtError as e:
            return Result(Code.WARNING, f'{e} nova-compute does not run with '
                                        f'it, so what guests have is not '
                                        f'known.')
        lines = []
        if settings.virt_type == 'auto':
            lines.append(
                'virt_type (auto is not a value of LibvirtDriver: kvm where '
                'nova-kvm-ext host check passes KVM508, else qemu)')
        elif settings.virt_type != nova.libvirt.virt_type:
            lines.append(f'virt_type = {settings.virt_type}')
        mode = choice.nova_mode
        if choice.mode == 'maximum' and settings.virt_type != 'kvm':
            mode = 'host-model'  # the best there that LibvirtDriver knows
        if mode != nova.libvirt.cpu_mode:
            lines.append(f'cpu_mode = {mode}')
        if list(choice.nova_models) != list(nova.libvirt.cpu_models or ()):
            lines.append(f'cpu_models = {",".join(choice.nova_models)}')
        if choice.mode != mode:
            lines.append(f'(LibvirtDriver does not know cpu_mode = '
                         f'{choice.mode})')
        if choice.models != choice.nova_models:
            lines.append(f'(LibvirtDriver knows no level such as '
                         f'{",".join(choice.models)}: a level has more '
                         f'features than its model here)')
        if not lines:
            return Result(Code.SUCCESS)
        return Result(
            Code.WARNING, f'LibvirtDriver does not read [{conf.GROUP.name}]. '
            f'So that guests keep their CPU at their next start, set in '
            f'[libvirt]: {"; ".join(lines)}.')

    def _scheduler(self) -> Result:
        """nova-scheduler does not start with a filter that is gone."""
        if _FILTER not in self._nova.filter_scheduler.enabled_filters:
            return Result(Code.SUCCESS)
        return Result(
            Code.FAILURE, f'[filter_scheduler] enabled_filters has {_FILTER}: '
            'without this package nova-scheduler does not start. Remove it '
            'and the line of available_filters before you remove the '
            'package.')

    def _files(self) -> Result:
        """What lies in Nova's state directory and is of no use any more."""
        path = self._nova.state_path
        try:
            names = sorted(name for name in os.listdir(path)
                           if name.startswith(_STATE_FILES))
        except FileNotFoundError:
            return Result(Code.SUCCESS)
        except OSError as e:
            return Result(Code.WARNING, f'{path} cannot be read: '
                                        f'{e.strerror}. Run this as root.')
        # With the ledger would go what tells which guests are to be thawed.
        commands = {name: '' if name == _LEDGER and self._owes_a_thaw
                    else shlex.join(['rm', '-r', os.path.join(path, name)])
                    for name in names}
        return self._left(
            (traces.Trace(name, command)
             for name, command in commands.items()),
            Code.WARNING, f'They are in {path}; remove them once nova-compute '
                          'runs LibvirtDriver and no guest is frozen.')

    def _of_cloud(self, read: Callable[[Any], Iterable[traces.Trace]],
                  code: Code, then: str) -> Result:
        try:
            cloud = self._cloud()
            if cloud is None:
                return Result(Code.WARNING, _NO_CLOUD)
            return self._left(read(cloud), code, then)
        except errors.KVMExtError as e:
            return Result(Code.WARNING, f'Not known: {e}')

    def _traits(self) -> Result:
        """Traits in Placement, which only this driver removes."""
        def read(cloud: Any) -> Iterable[traces.Trace]:
            with base.progress('resource providers') as progress:
                return traces.of_providers(reader.providers(cloud, progress))
        return self._of_cloud(
            read, Code.WARNING,
            'A host that still runs this driver sets them again. For the '
            'others, give these commands once LibvirtDriver runs.')

    def _flavors(self) -> Result:
        """Flavors that ask for what LibvirtDriver does not know."""
        return self._of_cloud(
            lambda cloud: traces.of_flavors(reader.flavors(cloud)),
            Code.WARNING,
            'LibvirtDriver ignores kvm_ext: extra specs, and no host of it '
            'has the traits, so such servers find no valid host. Servers '
            'that are there keep the flavor as it was: resize them.')

    def _servers(self) -> Result:
        """Guests whose CPU LibvirtDriver would not give again."""
        host = self._nova.host
        return self._of_cloud(
            lambda cloud: traces.of_servers(reader.servers(cloud, host)),
            Code.WARNING,
            f'LibvirtDriver on {host} gives them the CPU of nova.conf at '
            f'their next hard reboot, and keeps no guest\'s CPU. Resize them '
            f'to a flavor without these extra specs.')

    def _images(self) -> Result:
        """Images that ask for what LibvirtDriver does not know."""
        return self._of_cloud(
            lambda cloud: traces.of_images(reader.images(cloud)),
            Code.WARNING,
            'LibvirtDriver ignores these properties; required traits keep '
            'servers of the image from finding a host.')

    _upgrade_checks = (
        ('Frozen guests', _frozen),
        ('Options of nova.conf', _options),
        ('Filter of nova-scheduler', _scheduler),
        ('Traits in Placement', _traits),
        ('Flavors', _flavors),
        ('Images', _images),
        ('CPUs of servers here', _servers),
        ('Files in Nova\'s state directory', _files),
    )

    def check(self) -> Code:
        """As ``upgrade check``, and after the table the commands."""
        code = super().check()
        if self.commands and not self._nova.command.json:
            print('\nWhat removes them:\n')
            for command in self.commands:
                print(command)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        return code
