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

"""The cloud's services: one table, and how they start, end and are ready.

For code that runs inside the cloud's namespaces (:mod:`sandbox`): the command
that brings the cloud up, and checks that break a service and repair it. What a
service says goes to a log of its own. It configures nothing and must not
register anything in the cloud.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from nova_kvm_ext.tests.cloud import ceph
from nova_kvm_ext.tests.cloud import configuration
from nova_kvm_ext.tests.cloud import sandbox

_TIMEOUT = 300.0
_OVS = '/run/openvswitch'
_SCHEMA = '/usr/share/openvswitch/vswitch.ovsschema'


class ServiceError(Exception):
    """A service does not start or end; str() has the end of its log."""


@dataclasses.dataclass(frozen=True)
class Service:
    """A process to be started.

    :ivar name: unique; its log and PID file are called so
    :ivar command: arguments; the program by name or path
    :ivar ready: whether it can be used; must not take long
    :ivar compute: whose namespaces it runs in
    :ivar environment: variables beside those of all
    :ivar first: a command that runs before it, each time
    """

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    compute: str = sandbox.COMPUTES[0]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    first: Sequence[str] = ()


def _listens(path: pathlib.Path) -> Callable[[], bool]:
    def ready() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except OSError:
                return False
        return True
    return ready


def _accepts(port: int) -> Callable[[], bool]:
    def ready() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(
                (configuration.CONTROLLER, port), timeout=5):
            return True
        return False
    return ready


def _answers(port: int) -> Callable[[], bool]:
    url = f'http://{configuration.CONTROLLER}:{port}/'

    def ready() -> bool:
        try:
            urllib.request.urlopen(url, timeout=30).close()
        except urllib.error.HTTPError as e:
            return e.code < 500
        except OSError:
            return False
        return True
    return ready


def _always() -> bool:
    """For those that the cloud's own APIs tell about."""
    return True


def table(state: pathlib.Path, venv: pathlib.Path) -> dict[str, Service]:
    """Every service there is, by name."""
    etc, run, logs = state / 'etc', state / 'run', state / 'logs'
    binaries = venv / 'bin'
    rabbit = pathlib.Path('/run/rabbitmq')
    services = [
        Service(
            'mariadb',
            ['mariadbd', '--no-defaults', '--user=root', '--skip-networking',
             '--datadir=/run/mariadb', f'--socket={run}/mariadb.sock',
             f'--pid-file={run}/mariadbd.pid', f'--tmpdir={state}/tmp',
             '--max-connections=500', '--skip-log-bin',
             # A killed server loses nothing; a machine without power may.
             '--innodb-flush-log-at-trx-commit=2', '--innodb-doublewrite=0',
             '--character-set-server=utf8mb4'],
            _listens(run / 'mariadb.sock')),
        Service(
            'rabbitmq', ['/usr/lib/rabbitmq/bin/rabbitmq-server'],
            _accepts(5672), environment={
                'HOME': str(rabbit),
                'RABBITMQ_NODENAME': 'rabbit@localhost',
                'RABBITMQ_MNESIA_BASE': str(rabbit / 'mnesia'),
                'RABBITMQ_LOG_BASE': str(logs),
                'RABBITMQ_CONFIG_FILE': str(etc / 'rabbitmq'),
                'RABBITMQ_ENABLED_PLUGINS_FILE': str(etc / 'enabled_plugins'),
                'RABBITMQ_GENERATED_CONFIG_DIR': str(rabbit / 'config'),
                'RABBITMQ_CONF_ENV_FILE': str(rabbit / 'none'),
                'ERL_EPMD_ADDRESS': '127.0.0.1',
                # Idle schedulers would spin.
                'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS':
                    '+sbwt none +sbwtdcpu none +sbwtdio none'})]
    for project, service in (
            ('keystone', 'identity'), ('glance', 'image'),
            ('placement', 'placement'), ('neutron', 'network'),
            ('nova', 'compute'), ('cinder', 'block-storage')):
        services.append(Service(
            f'{project}-api', [
                'env', f'--chdir={etc}/{service}-api', f'{binaries}/gunicorn'],
            _answers(configuration.PORTS[service]), environment={
                # Cinder looks for .cinder in it, and can be told of nothing.
                'HOME': str(etc / f'{service}-api'),
                f'OS_{project.upper()}_CONFIG_DIR': str(etc),
                f'OS_{project.upper()}_CONFIG_FILES':
                    # The first that Nova is given describes its pipeline.
                    f'{venv}/etc/nova/api-paste.ini;nova.conf'
                    if project == 'nova' else f'{project}.conf'}))
    for name, program in (
            ('neutron-rpc', 'neutron-rpc-server'),
            ('nova-conductor', 'nova-conductor'),
            ('nova-scheduler', 'nova-scheduler'),
            ('cinder-scheduler', 'cinder-scheduler'),
            ('cinder-volume', 'cinder-volume')):
        services.append(Service(
            name, [f'{binaries}/{program}', '--config-file',
                   f'{etc}/{name.partition("-")[0]}.conf', '--config-file',
                   f'{etc}/{name}-changed.conf'], _always))
    for name in ceph.SERVICES:
        services.append(Service(name, ceph.daemon(name), _always))
    for compute in sandbox.COMPUTES:
        top = state / compute
        database = f'{top}/ovs-etc/conf.db'

        def bridge(name: str, *more: str) -> list[str]:
            return ['--', '--may-exist', 'add-br', name, '--', 'set',
                    'bridge', name, 'datapath_type=netdev', *more]

        physical = sandbox.PHYSICAL[compute]
        services += [
            Service(
                f'ovsdb-{compute}',
                ['ovsdb-server', database,
                 f'--remote=punix:{_OVS}/db.sock', '--pidfile'],
                _in(compute, state, f'{_OVS}/db.sock'), compute,
                first=['sh', '-ec', f'test -e {database} || '
                       f'ovsdb-tool create {database} {_SCHEMA}']),
            Service(
                f'ovs-{compute}',
                ['ovs-vswitchd', f'unix:{_OVS}/db.sock', '--pidfile'],
                _always, compute,
                first=['ovs-vsctl', '--no-wait', 'init',
                       *bridge(configuration.BRIDGE), '--', '--may-exist',
                       'add-port', configuration.BRIDGE, physical]),
            Service(
                f'neutron-agent-{compute}',
                [f'{binaries}/neutron-openvswitch-agent', '--config-file',
                 f'{etc}/neutron.conf', '--config-file',
                 f'{etc}/{compute}-agent.conf'],
                _always, compute),
            Service(
                f'virtlogd-{compute}',
                ['virtlogd', '--config', '/etc/libvirt/virtlogd.conf',
                 '--pid-file', '/run/libvirt/virtlogd.pid'],
                _listens(top / 'libvirt-run' / 'virtlogd-sock'), compute),
            Service(
                f'libvirtd-{compute}',
                ['libvirtd', '--config', '/etc/libvirt/libvirtd.conf',
                 '--pid-file', '/run/libvirt/libvirtd.pid'],
                _listens(top / 'libvirt-run' / 'libvirt-sock'), compute),
            Service(
                f'nova-compute-{compute}',
                [f'{binaries}/nova-compute',
                 '--config-file', f'{etc}/nova-compute.conf',
                 '--config-file', f'{etc}/{compute}.conf',
                 '--config-file', f'{etc}/{compute}-changed.conf'],
                _always, compute),
        ]
    return {service.name: service for service in services}


def _in(compute: str, state: pathlib.Path, path: str) -> Callable[[], bool]:
    """Whether a path exists in a compute's own /run."""
    def ready() -> bool:
        return subprocess.run(sandbox.in_compute(
            state, compute, ['test', '-e', path])).returncode == 0
    return ready


class Services:
    """The services of one cloud, by name.

    :param state: directory of the cloud
    :param venv: directory of the environment that they run from
    """

    def __init__(self, state: pathlib.Path, venv: pathlib.Path) -> None:
        self._state = state
        self._venv = venv
        self._table = table(state, venv)

    def log(self, name: str) -> pathlib.Path:
        """The file that a service's words go to."""
        return self._state / 'logs' / f'{name}.log'

    def environment(self, more: Mapping[str, str] = {}) -> dict[str, str]:
        """The variables of all processes in the cloud."""
        return {
            'PATH': f'{self._state}/bin:{self._venv}/bin:/usr/local/sbin:'
                    '/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
            'HOME': str(self._state / 'tmp'),
            'TMPDIR': str(self._state / 'tmp'),
            'LC_ALL': 'C.UTF-8',
            'PYTHONDONTWRITEBYTECODE': '1',
            'PYTHONWARNINGS': 'ignore',
            # A daemon could tell the host's systemd about its guests.
            'DBUS_SYSTEM_BUS_ADDRESS': f'unix:path={self._state}/no-bus',
            **more}

    def run(self, name: str, command: Sequence[str], *,
            compute: str = sandbox.COMPUTES[0], timeout: float = 600) -> str:
        """Run a command to its end, its words also to a log.

        :param name: of the log
        :returns: what it printed
        :raises ServiceError: it fails
        """
        try:
            result = subprocess.run(
                sandbox.in_compute(self._state, compute, command),
                env=self.environment(), umask=0o022, text=True,
                timeout=timeout, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except subprocess.TimeoutExpired as e:
            raise ServiceError(f'{" ".join(command)} has not ended within '
                               f'{timeout:.0f} s.') from e
        with open(self.log(name), 'a') as log:
            log.write(result.stdout)
        if result.returncode:
            raise ServiceError(
                f'{" ".join(command)} failed with {result.returncode}: '
                f'{result.stdout[-3000:]}')
        return result.stdout

    def start(self, *names: str, wait: bool = True) -> None:
        """Start services together.

        :param wait: until each is ready
        :raises ServiceError: one ends at once, or is not ready in time
        """
        for name in names:
            service = self._table[name]
            if service.first:
                self.run(name, service.first, compute=service.compute)
            with open(self.log(name), 'a') as log:
                process = subprocess.Popen(
                    sandbox.in_compute(
                        self._state, service.compute, service.command),
                    env=self.environment(service.environment), umask=0o022,
                    stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True,
                    # ceph-osd of Debian 13 looks for its classes in lib/...
                    cwd='/')
            self._pid_file(name).write_text(f'{process.pid}\n')
        if wait:
            self.wait(*names)

    def wait(self, *names: str) -> None:
        """Wait until services are ready.

        :raises ServiceError: one has ended, or is not ready in time
        """
        for name in names:
            ready = self._table[name].ready
            deadline = time.monotonic() + _TIMEOUT
            while not ready():
                if self.pid(name) is None:
                    raise ServiceError(f'{name} has ended:\n{self.tail(name)}')
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f'{name} is not ready after {_TIMEOUT:.0f} s:\n'
                        f'{self.tail(name)}')
                time.sleep(0.1)

    def stop(self, name: str, how: int = signal.SIGTERM,
             timeout: float = 90) -> None:
        """End a service, if it runs, and wait for its end.

        :param how: the signal
        """
        pid = self.pid(name)
        if pid is None:
            return
        # Its workers too.
        os.killpg(pid, how)
        deadline = time.monotonic() + timeout
        while self.pid(name) is not None:
            if time.monotonic() > deadline:
                raise ServiceError(
                    f'{name} has not ended {timeout:.0f} s after signal '
                    f'{how}:\n{self.tail(name)}')
            time.sleep(0.05)

    def pid(self, name: str) -> int | None:
        """Its process, inside; None when there is none."""
        try:
            pid = int(self._pid_file(name).read_text())
            state = pathlib.Path(f'/proc/{pid}/stat').read_text()
        except FileNotFoundError:
            return None
        # A zombie is one of this process.
        return None if state.rpartition(')')[2].split()[0] == 'Z' else pid

    def tail(self, name: str, lines: int = 25) -> str:
        """The end of a log."""
        with contextlib.suppress(FileNotFoundError):
            text = self.log(name).read_text(errors='replace')
            return '\n'.join(text.splitlines()[-lines:])
        return ''

    def dead(self, names: Iterable[str]) -> list[str]:
        """Those of the services that do not run."""
        return [name for name in names if self.pid(name) is None]

    def _pid_file(self, name: str) -> pathlib.Path:
        return self._state / 'run' / f'{name}-service.pid'
