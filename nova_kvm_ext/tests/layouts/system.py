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
"""One root of a layout: its files, its daemons, and what they say."""

from collections.abc import Callable
from collections.abc import Sequence
import json
import pathlib
import re
import subprocess
import time
from typing import Any

from nova_kvm_ext.tests.layouts import placement
from nova_kvm_ext.tests import roots

TIMEOUT = 240.0
"""Of what a daemon does, seconds, on a machine that does other things."""

GUEST_TIMEOUT = 900

NOVA_CONF = '/etc/nova/nova.conf'
_DATABASE_CONF = '/etc/nova/database.conf'
_DATABASE = '/var/lib/nova/nova.sqlite'
LOG = '/var/log/nova/nova-compute.log'
_OURS = 'Guests run with virt_type='
"""How a line begins that KVMDriver logs at its start, and no other driver."""

COMMON = {
    'DEFAULT': {
        'transport_url': 'rabbit://guest:guest@127.0.0.1:5672/',
        'compute_driver': 'kvm_ext.KVMDriver',
        'state_path': '/var/lib/nova',
        'my_ip': '127.0.0.1',
        # So that a mended host is seen to be within seconds.
        'update_resources_interval': '10',
        'report_interval': '2',
        'graceful_shutdown_timeout': '5',
        'manager_shutdown_timeout': '5',
    },
    'kvm_ext': {'virt_type': 'auto'},
    'placement': {
        'auth_type': 'none',
        'endpoint_override': f'http://127.0.0.1:{placement.PORT}'},
    'oslo_concurrency': {'lock_path': '/var/lib/nova/tmp'},
    'vnc': {'enabled': 'false'},
    # Nothing is set of the others: no guest of a cloud comes here.
}
"""The nova.conf of every layout: the README's settings, with ``auto``, because
not every machine that runs this has a KVM."""

Settings = dict[str, dict[str, str]]


class Wrong(Exception):
    """A layout is not as it should be; str() says in what."""


def merged(*settings: Settings) -> Settings:
    """Options of several; the later ones count."""
    found: Settings = {}
    for one in settings:
        for section, options in one.items():
            found.setdefault(section, {}).update(options)
    return found


def as_text(settings: Settings) -> str:
    """Options as oslo.config reads them."""
    return ''.join(
        f'[{section}]\n' + ''.join(f'{name} = {value}\n'
                                   for name, value in options.items())
        for section, options in settings.items())


def wait_for(what: str, look: Callable[[], Any],
             timeout: float = TIMEOUT) -> Any:
    """Look every half second until there is something to see.

    :raises Wrong: there is nothing for too long
    """
    deadline = time.monotonic() + timeout
    while not (found := look()):
        if time.monotonic() > deadline:
            raise Wrong(f'no {what} within {timeout:.0f} s')
        time.sleep(0.5)
    return found


class System:
    """A root with what Nova needs around it.

    :param root: the root; as long as it is in use, so is this
    :param nova: directory of Nova's programs, where that is not /usr/bin
    :param ours: directory of our commands; without it where pip puts them
    """

    def __init__(self, root: roots.Root, nova: str = '/usr/bin',
                 ours: str = '') -> None:
        self.root = root
        self.nova = nova
        self.ours = ours or ('/usr/local/bin' if nova == '/usr/bin' else nova)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # Files and commands

    def path(self, path: str) -> pathlib.Path:
        return self.root.seen(path)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        try:
            return self.path(path).read_text(errors='replace')
        except FileNotFoundError:
            return ''

    def sh(self, script: str, timeout: float = TIMEOUT,
           **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return self.root.run(
            ['sh', '-ec', script], timeout=timeout,
            **{'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT,
               **kwargs})

    def start(self, name: str, script: str) -> subprocess.Popen[bytes]:
        """Start a daemon in the foreground; its output is in /var/log/beds."""
        directory = self.path('/var/log/beds')
        directory.mkdir(exist_ok=True)
        # The environment of run(), for a process that stays.
        with open(directory / f'{name}.log', 'ab') as log:
            self._daemons[name] = subprocess.Popen(
                self.root.enter(['env', '-i', 'LANG=C.UTF-8', 'HOME=/root',
                                 f'PATH={self.nova}:/usr/sbin:/usr/bin:'
                                 '/sbin:/bin', 'sh', '-c', f'exec {script}']),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self._daemons[name]

    def stop(self, name: str) -> int | None:
        """End a daemon as systemd does; its exit code, or None."""
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return None
        # The daemon is a child of nsenter, which hands no signal on.
        subprocess.run(['pkill', '-TERM', '--parent', str(daemon.pid)])
        try:
            return daemon.wait(60)
        except subprocess.TimeoutExpired:
            subprocess.run(['pkill', '-KILL', '--parent', str(daemon.pid)])
            return daemon.wait(60)

    def said(self, name: str) -> str:
        """The end of what a daemon printed."""
        return self.read(f'/var/log/beds/{name}.log')[-1500:]

    # What is around nova-compute

    def start_controller(self, sources: str) -> None:
        """RabbitMQ, a database, nova-conductor, a stand-in for Placement.

        :param sources: where the root sees this package's sources
        """
        self.write(NOVA_CONF, as_text(COMMON), 0o640)
        self.write(_DATABASE_CONF, as_text({'database': {
            'connection': f'sqlite:///{_DATABASE}'}}), 0o640)
        self.sh(f'chgrp nova {NOVA_CONF} {_DATABASE_CONF}; '
                'install -d -o nova -g nova /var/lib/nova '
                '/var/lib/nova/instances /var/lib/nova/tmp /var/log/nova')
        self.start('placement', 'python3 '
                   f'{sources}/nova_kvm_ext/tests/layouts/placement.py')
        self.start('rabbitmq', 'env RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 '
                   'rabbitmq-server')
        files = f'--config-file {NOVA_CONF} --config-file {_DATABASE_CONF}'
        self.sh(f'runuser -u nova -- {self.nova}/nova-manage {files} '
                f'db sync --local_cell', timeout=600)
        wait_for('RabbitMQ', lambda: self._listens(5672))
        self.start('conductor', f'runuser -u nova -- {self.nova}'
                   f'/nova-conductor {files} --log-file '
                   f'/var/log/nova/nova-conductor.log')

    def _listens(self, port: int) -> bool:
        # Local address, remote address, state: 0A is LISTEN. RabbitMQ may
        # take the address as one of IPv6.
        tables = self.sh('cat /proc/net/tcp /proc/net/tcp6').stdout
        return re.search(rf':{port:04X} 0+:0000 0A', tables) is not None

    def start_libvirt(
        self, daemons: Sequence[str] = ('virtlogd', 'libvirtd'),
        conf: str = '', options: str = '',
    ) -> None:
        """Start libvirt's daemons as the distribution does, by hand.

        :param conf: lines for each daemon's own file
        :param options: for the last of them, the one with the socket
        """
        for name in daemons:
            if name != 'virtlogd':
                # There is no polkit. Debian's own group may connect.
                self.write(f'/etc/libvirt/{name}.conf',
                           'unix_sock_group = "libvirt"\n'
                           'unix_sock_rw_perms = "0770"\n'
                           'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'
                           'log_outputs = "3:file:/var/log/libvirt/'
                           f'{name}.log"\n' + conf)
            self.start(name, f'{name} {options}' if name == daemons[-1]
                       else name)
        sock = ('virtqemud' if 'virtqemud' in daemons else 'libvirt')
        wait_for("libvirt's socket",
                 lambda: self.path(f'/run/libvirt/{sock}-sock').exists())

    def allow_kvm(self) -> None:
        """What udev does: /dev/kvm is open to its group."""
        self.sh('if [ -e /dev/kvm ]; then chgrp kvm /dev/kvm; '
                'chmod 0660 /dev/kvm; fi')

    # nova-compute

    def start_compute(self, command: str) -> None:
        self.path(LOG).unlink(missing_ok=True)
        self._registered = self.service().get('report_count', -1)
        self.start('nova-compute', command)

    def service(self) -> dict[str, Any]:
        """The row of nova-compute in Nova's table of services, or {}."""
        done = self.sh(f"""python3 - <<'EOF'
import json, sqlite3
connection = sqlite3.connect('file:{_DATABASE}?mode=ro', uri=True)
connection.row_factory = sqlite3.Row
print(json.dumps([dict(row) for row in connection.execute(
    "select * from services where binary = 'nova-compute'")]))
EOF""", check=False)
        if done.returncode:
            return {}
        return next(iter(json.loads(done.stdout)), {})

    def compute_log(self) -> str:
        return self.read(LOG) + self.said('nova-compute')

    def registered(self) -> str:
        """What nova-compute is, once it reports to Nova with our driver.

        :raises Wrong: it ended, or does not report
        """
        daemon = self._daemons['nova-compute']

        def look() -> dict[str, Any] | None:
            row = self.service()
            if row and row['report_count'] > self._registered:
                return row
            if daemon.poll() is not None:
                raise Wrong(f'nova-compute ended with {daemon.returncode}: '
                            + errors_of(self.compute_log()))
            return None

        try:
            row = wait_for('report of nova-compute', look)
        except Wrong as e:
            raise Wrong(f'{e}: {errors_of(self.compute_log())}') from e
        log = self.compute_log()
        ours = next((line for line in log.splitlines() if _OURS in line), '')
        if not ours:
            raise Wrong('nova-compute runs, and not with KVMDriver')
        return (f'{ours[ours.index(_OURS):]} Service '
                + ('disabled' if row['disabled'] else 'enabled'))

    def ended(self, timeout: float = TIMEOUT) -> int:
        """The exit code of a nova-compute that does not start."""
        try:
            return self._daemons.pop('nova-compute').wait(timeout)
        except subprocess.TimeoutExpired:
            raise Wrong('nova-compute did not end') from None

    # Our commands

    def host_check(self, *arguments: str, user: str = 'root'
                   ) -> tuple[int, dict[str, dict[str, Any]]]:
        """``host check``: its exit code, and its rows by code."""
        done = self.root.run(
            [*([] if user == 'root' else ['runuser', '-u', user, '--']),
             self._ours(), 'host', 'check', '-f', 'json', *arguments],
            check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=600)
        try:
            rows = json.loads(done.stdout)
        except ValueError:
            raise Wrong(f'host check: exit code {done.returncode}: '
                        f'{done.stderr[-800:]}') from None
        return done.returncode, {row['code']: row for row in rows}

    def guest_boot(self, *arguments: str, directory: str = '') -> str:
        """``guest boot``: what booted.

        :param directory: for its disk, where libvirt does not see /var/tmp
        :raises Wrong: nothing did
        """
        done = self.root.run(
            [self._ours(), 'guest', 'boot', '-f', 'json', '--timeout',
             str(GUEST_TIMEOUT), *arguments], check=False,
            environment={'TMPDIR': directory} if directory else {},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=GUEST_TIMEOUT + 300)
        if done.returncode:
            raise Wrong(f'guest boot: exit code {done.returncode}: '
                        f'{done.stderr[-1200:]}{done.stdout[-800:]}')
        if 'Error updating resources' in self.compute_log():
            raise Wrong('nova-compute cannot look at this host any more: ' +
                        errors_of(self.compute_log()))
        return f'exit code 0; {_results(done.stdout)}'

    def _ours(self) -> str:
        return f'{self.ours}/nova-kvm-ext'


def _results(text: str) -> str:
    """How many promises a booted guest keeps."""
    found = json.loads(text)
    rows = found.get('checks') or found.get('verdicts') or []
    kinds = [row.get('result') for row in rows]
    return ', '.join(f'{kinds.count(kind)} {kind}'
                     for kind in dict.fromkeys(kinds)) or 'up'


def errors_of(log: str) -> str:
    """The last lines of a log that are errors, or the last ones."""
    lines = log.splitlines()
    found = [line for line in lines if ' ERROR ' in line or
             ' CRITICAL ' in line] or lines
    return ' | '.join(line[-300:] for line in found[-3:])


def bad(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What FAILs, by code."""
    return {code: f'{row["details"]}' for code, row in rows.items()
            if row['result'] == 'FAIL'}


def told(code: int, rows: dict[str, dict[str, Any]]) -> str:
    """A host check in a line, and one for each FAIL."""
    kinds = [row['result'] for row in rows.values()]
    warned = [code for code, row in rows.items() if row['result'] == 'WARN']
    return '\n'.join([
        f'exit code {code}; ' + ', '.join(
            f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds)) +
        (f' ({", ".join(warned)})' if warned else ''),
        *(f'{code} FAIL: {said}' for code, said in bad(rows).items())])
