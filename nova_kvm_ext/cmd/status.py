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

"""``nova-kvm-ext-status``: ``upgrade check`` and ``rollback check``.

They say what to repair before an upgrade, and before a rollback to
LibvirtDriver.

Run them, as ``nova-status upgrade check``, with the new release installed and
before its nova-compute is started. Table, ``--json`` and exit codes are those
of oslo.upgradecheck:

0 nothing to do, 1 something to look into, 2 something stops the upgrade,
255 the check itself failed.
"""

from collections.abc import Iterator
import contextlib
import functools
import glob
from importlib import metadata
import json
import os
import re
import subprocess
import sys
from typing import Any

from nova import conf as nova_conf
from oslo_config import cfg
from oslo_upgradecheck import upgradecheck

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import rollback
from nova_kvm_ext import conf
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.guests import survey
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import configuration
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import install_facts
from nova_kvm_ext.host import nova_python
from nova_kvm_ext.host import options

NOVA_RELEASES = (31, 34)
"""The first and the last major version of Nova that this release is for."""

_ERROR = 255
_IMPORT_SECONDS = 120

_MASAKARI_FILES = (
    '/etc/masakari*/*monitors*.conf',
    '/etc/kolla/masakari-*/*monitors*.conf')

_INSTALLED = 'KVM401'
_VERSIONS = ('KVM503', 'KVM504')
_OPTIONS = 'KVM402'

Code = upgradecheck.Code
Result = upgradecheck.Result

_CODES = {verdict.FAIL: Code.FAILURE, verdict.WARN: Code.WARNING}


class Checks(upgradecheck.UpgradeCommands):
    """What operators of this driver look at before an upgrade."""

    display_title = 'nova-kvm-ext upgrade check results'

    configuration = configuration.Configuration(())
    """What the options were read from."""

    @functools.cached_property
    def _host(self) -> list[verdict.CheckResult]:
        """The checks of this host, without the guest that they can start."""
        nova = nova_conf.CONF
        uri = nova.libvirt.connection_uri or base.LIBVIRT_URI
        with contextlib.ExitStack() as stack:
            return runner.run(facts.read_host(
                options.HostOptions.from_conf(nova, self.configuration.how),
                uri, lambda: stack.enter_context(
                    base.libvirt_connection(uri)),
                install=install_facts.read(self.configuration.service),
                python=nova_python.find(self.configuration.service)))

    def _of_host(self, *codes: str) -> Result:
        """Some of the checks of this host as one."""
        found = [(_CODES[result.result], result) for result in self._host
                 if result.code in codes and result.result in _CODES]
        if not found:
            # Details are for what there is to do.
            return Result(Code.SUCCESS)
        # The worst first, otherwise as they are.
        found.sort(key=lambda item: -item[0])
        return Result(found[0][0], '; '.join(
            f'{result.code} {result.title}: {result.details}'
            f'{f" (remedy: {result.remedy})" if result.remedy else ""}'
            for _, result in found))

    def _nova_release(self) -> Result:
        """Whether this package is for the Nova that is installed."""
        version = metadata.version('nova')
        first, last = NOVA_RELEASES
        major = int(version.partition('.')[0])
        if major < first:
            return Result(
                Code.FAILURE, f'Nova {version} is older than {first}, the '
                f'first release that this package runs with. Upgrade Nova, '
                f'or keep the older nova-kvm-ext.')
        if major > last:
            return Result(
                Code.WARNING, f'Nova {version} is newer than {last}, the '
                f'last release that this package was tested with. Look for '
                f'a newer nova-kvm-ext.')
        return Result(Code.SUCCESS)

    def _interface(self) -> Result:
        """Whether what we override is still there in that Nova."""
        # -P: what is installed, not what lies in this directory.
        found = subprocess.run(
            [sys.executable, '-P', '-m', 'nova_kvm_ext.contract'],
            capture_output=True, text=True, timeout=_IMPORT_SECONDS,
            stdin=subprocess.DEVNULL)
        if found.returncode:
            last = found.stderr.strip().rpartition('\n')[2]
            return Result(
                Code.FAILURE, f'The driver cannot be loaded: '
                f'{errors.clean(last)}. Install the nova-kvm-ext for this '
                f'Nova.')
        # Nova may print before.
        moved = json.loads(found.stdout.strip().rpartition('\n')[2])
        if moved:
            return Result(
                Code.FAILURE, 'The interface of Nova has changed: '
                f'{"; ".join(moved)}. Install the nova-kvm-ext for this Nova.')
        return Result(Code.SUCCESS)

    def _installed(self) -> Result:
        """Whether Nova's loader finds the driver, and is told to."""
        return self._of_host(_INSTALLED)

    def _options(self) -> Result:
        """Values that are refused, and options that there are not."""
        refused = self._of_host(_OPTIONS)
        if refused.code != Code.SUCCESS:
            return refused
        files = self.configuration.files
        if not files:
            return Result(
                Code.WARNING, 'No configuration of nova-compute was found, so '
                'no option was checked. Name its nova.conf with '
                '--config-file.')
        known = {name for option in conf.list_opts()[0][1]
                 for name in (option.dest, option.name)}
        strange = [f'{name} in {file}' for file in files
                   for name in sorted(_written(file) - known)]
        if strange:
            return Result(
                Code.WARNING, f'[{conf.GROUP.name}] has options that this '
                'release does not know, and so ignores: '
                f'{errors.clean(", ".join(strange))}. Correct their names, or '
                'remove them; the release notes name those that were '
                'removed.')
        return Result(Code.SUCCESS)

    def _versions(self) -> Result:
        """libvirt and QEMU against what this Nova and the next need."""
        return self._of_host(*_VERSIONS)

    def _guests(self) -> Result:
        """Whether the new nova-compute would start on this host."""
        return self._of_host(*(set(runner.codes()) - {
            _INSTALLED, _OPTIONS, *_VERSIONS}))

    def _running_guests(self) -> Result:
        """Guests that still run what was there before the last upgrade."""
        nova = nova_conf.CONF
        uri = nova.libvirt.connection_uri or base.LIBVIRT_URI
        try:
            with base.libvirt_connection(uri) as connection:
                found = survey.look(connection, nova, uri)
        except Exception as e:
            if not (isinstance(e, errors.HostError) or
                    hasattr(e, 'get_error_code')):
                raise
            # The checks of the host say so.
            return Result(Code.SUCCESS, 'libvirt does not tell which guests '
                                        'run')
        said = []
        for guests, what in (
                (found.old_qemu(), 'an older QEMU'),
                (found.old_machine(), 'a machine type that is deprecated or '
                                      'that QEMU does not have any more')):
            if guests:
                names = usable.some((one.guest.name for one in guests), 3)
                said.append(
                    f'{len(guests)} guest{"s" if len(guests) > 1 else ""} '
                    f'run{"" if len(guests) > 1 else "s"} {what} ({names})')
        if not said:
            return Result(Code.SUCCESS)
        return Result(Code.WARNING, f'{"; ".join(said)}. A hard reboot, or a '
                                    f'live migration for QEMU alone, brings '
                                    f'them up to date: nova-kvm-ext guest '
                                    f'list --outdated shows them.')

    def _masakari(self) -> Result:
        """Whether Masakari finds the guests that have an agent."""
        remedy = (f'[introspectiveinstancemonitor] '
                  f'qemu_guest_agent_sock_path = '
                  f'{channel.MASAKARI_EXPRESSION}')
        missed = []
        seen = False
        for file, sections in _masakari_files():
            options = sections.get('introspectiveinstancemonitor')
            if options is None:
                # Other monitors are configured there, too.
                continue
            seen = True
            expression = (options.get('qemu_guest_agent_sock_path') or
                          [channel.MASAKARI_DEFAULT])[-1].strip('\'"')
            try:
                if channel.not_found_by(expression):
                    missed.append(file)
            except re.error:
                missed.append(file)
        if missed:
            return Result(
                Code.WARNING, 'Masakari\'s introspective instance monitor '
                'ignores guests whose agent socket has libvirt\'s own path, '
                f'as those of this driver have: set {remedy} in '
                f'{errors.clean(", ".join(missed))}.')
        return Result(Code.SUCCESS, None if seen else (
            f'Only if Masakari\'s introspective instance monitor runs for '
            f'this host: it finds guests by {remedy}'))

    _upgrade_checks = (
        ('Nova release', _nova_release),
        ('Interface to Nova', _interface),
        ('Driver found by Nova', _installed),
        ('Options of nova.conf', _options),
        ('Versions of libvirt and QEMU', _versions),
        ('Host checks', _guests),
        ('Guests that run', _running_guests),
        ('Guest agents and Masakari', _masakari),
    )


def _masakari_files() -> Iterator[tuple[str, Any]]:
    """Configurations of Masakari's monitors on this host: path, sections."""
    for pattern in _MASAKARI_FILES:
        for file in sorted(glob.glob(pattern)):
            sections: dict[str, dict[str, list[str]]] = {}
            try:
                cfg.ConfigParser(file, sections).parse()
            except (cfg.Error, cfg.ParseError, OSError, UnicodeDecodeError):
                # It is Masakari's to complain; we may not even read it.
                continue
            yield file, sections


def _written(file: str) -> set[str]:
    """The names that stand in the group of our options."""
    sections: dict[str, dict[str, list[str]]] = {}
    cfg.ConfigParser(os.path.expanduser(file), sections).parse()
    return set(sections.get(conf.GROUP.name, {}))


def register_commands(conf_: cfg.ConfigOpts, commands: Checks) -> None:
    """Have options parsed from the command line; the man page is of these.

    As upgradecheck.register_cli_options(), for two commands.

    :param conf_: the configuration that parses
    :param commands: what ``upgrade`` runs
    """
    conf_.register_cli_opt(cfg.SubCommandOpt(
        'command', handler=functools.partial(
            _add_parsers, commands, rollback.Checks())))


def _add_parsers(upgrades: Checks, rollbacks: rollback.Checks,
                 subparsers: Any) -> None:
    """The command line of both."""
    for name, commands in ('upgrade', upgrades), ('rollback', rollbacks):
        parser = subparsers.add_parser(name)
        parser.add_argument('check', choices=['check'])
        parser.add_argument(
            '--json', action='store_true',
            help='print the results as JSON instead of a table')
        parser.set_defaults(action_fn=commands.check)
        if name == 'rollback':
            parser.add_argument(
                '--os-cloud', metavar='NAME',
                help='check this cloud of clouds.yaml too: traits, flavors '
                     'and images that only this driver understands')


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    nova = nova_conf.CONF
    conf.register_opts(nova)
    commands = Checks()
    # What upgradecheck.main() does, but for the files that are read.
    register_commands(nova, commands)
    try:
        found = configuration.named(argv)
        if found is None:
            found = configuration.find()
            found.load(nova, argv)
        else:
            with configuration.parsed(found.files):
                nova(argv, project='nova', default_config_files=[],
                     default_config_dirs=[])
    except errors.InvalidOption as e:
        print(f'error: {e}', file=sys.stderr)
        return _ERROR
    except SystemExit as e:
        # argparse's code for a wrong command line is that of a Failure.
        return _ERROR if e.code == 2 else int(e.code or 0)
    base.say_files(found)
    commands.configuration = found
    upgradecheck.CONF = nova
    return int(upgradecheck.run(nova))


if __name__ == '__main__':
    sys.exit(main())
