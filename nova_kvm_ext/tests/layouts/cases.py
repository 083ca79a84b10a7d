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
"""The layouts: how each is made, and what is to be seen there."""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import os
import pathlib
import subprocess
import tempfile
import time

from nova_kvm_ext.tests.layouts import report
from nova_kvm_ext.tests.layouts import system
from nova_kvm_ext.tests import namespaces
from nova_kvm_ext.tests import roots

_NOVA = ('iproute2', 'nova-compute', 'nova-conductor', 'procps',
         'python3-pip', 'rabbitmq-server')
_LIBVIRT = ('libvirt-clients', 'libvirt-daemon-driver-qemu',
            'libvirt-daemon-system', 'qemu-system-x86')
_GUEST = ('busybox-static', 'e2fsprogs', 'kmod', 'linux-image-cloud-amd64',
          'mtools', 'qemu-guest-agent', 'syslinux', 'syslinux-common', 'zstd')
PACKAGES = {
    'debian13': (*_NOVA, 'nova-compute-kvm', *_LIBVIRT, 'qemu-utils',
                 *_GUEST),
    'split libvirt': (*_LIBVIRT, 'iproute2', 'procps'),
    'debian12': (*_LIBVIRT, 'iproute2', 'procps', 'python3-libvirt',
                 'python3-venv', 'qemu-utils', 'rabbitmq-server', 'sudo',
                 *_GUEST),
}

_COMPUTE_CONF = '/etc/nova/nova-compute.conf'
SOURCES = '/nova-kvm-ext'
_WHEELS = '/wheels'

# As Debian's unit does: User=nova, and this command.
DEBIAN = ('setpriv --reuid nova --regid nova --init-groups '
          '/etc/init.d/nova-compute systemd-start')

# Kolla's users and groups, whose numbers are the same in all its images.
_KOLLA_NOVA, _KOLLA_LIBVIRT = 42436, 42427

# Debian's package depends on a hypervisor's, so what Kolla's image does not
# have is taken away: QEMU and its user, libvirtd and its files, and the
# nova-compute.conf that comes with them. qemu-img stays.
_NO_HYPERVISOR = """
rm -rf /usr/bin/qemu-system-* /usr/bin/kvm /usr/sbin/libvirtd \\
    /usr/sbin/virtlogd /usr/lib/*/libvirt /etc/libvirt \\
    /etc/nova/nova-compute.conf
userdel libvirt-qemu
"""

_README: system.Settings = {'kvm_ext': {
    'virt_type': 'kvm', 'cpu_mode': 'custom', 'cpu_model': 'Nehalem'}}


@dataclasses.dataclass
class Context:
    """What all layouts of a run share.

    :ivar sources: this package's directory
    :ivar wheels: where its wheel is
    :ivar cache: what outlives a run
    :ivar say: for progress
    """

    sources: pathlib.Path
    wheels: pathlib.Path
    cache: pathlib.Path
    say: Callable[[str], None]

    def binds(self) -> list[tuple[str, ...]]:
        return [(str(self.sources), SOURCES, 'ro'),
                (str(self.wheels), _WHEELS, 'ro')]


class Layout(report.Layout):
    """A layout that says how far it is."""

    def __init__(self, context: Context, name: str) -> None:
        super().__init__(name)
        self._say = context.say

    def look(self, starts: Callable[[], str], check: Callable[[], str],
             boots: Callable[[], str]) -> 'Layout':
        self._say(self.name)
        for step, look in (('starts', starts), ('check', check),
                           ('boots', boots)):
            found = report.looked(look, time.monotonic)
            setattr(self, step, found)
            self._say(f'  {step}: {found.result}: {found.said}')
        return self


def _no(reason: str) -> Callable[[], str]:
    def look() -> str:
        raise report.NotHere(reason)
    return look


def _starts(here: system.System, command: str) -> Callable[[], str]:
    def look() -> str:
        here.stop('nova-compute')
        here.start_compute(command)
        said = here.registered()
        if 'Run this as root' in here.compute_log():
            raise system.Wrong('the log tells a service to be root')
        return said
    return look


def agrees(here: system.System, *arguments: str, users: tuple[str, ...] = (
        'root', 'nova')) -> Callable[[], str]:
    """A host check that finds nothing that keeps guests away."""
    def look() -> str:
        said = []
        for user in users:
            code, rows = here.host_check(*arguments, user=user)
            if code not in (0, 1) or system.bad(rows):
                raise system.Wrong(f'user {user}: '
                                   f'{system.told(code, rows)}')
            said.append(f'user {user}: {system.told(code, rows)}')
        return '\n'.join(said)
    return look


def _install(here: system.System) -> None:
    """As doc/source/install says for Debian's own Nova."""
    here.sh(
        'python3 -m pip install --quiet --break-system-packages --no-deps '
        f'--no-index --root-user-action ignore {_WHEELS}/*.whl\n'
        'door=$(echo /usr/local/lib/python3*/dist-packages/nova/virt/kvm_ext)'
        '\nln -s "$door" /usr/lib/python3/dist-packages/nova/virt/\n'
        'sed -i "s/^Defaults.*use_pty//" /etc/sudoers')


# Debian 13


def debian13(context: Context) -> Iterator[report.Layout]:
    """Nova's package of Debian, with libvirt and QEMU beside it."""
    context.say('a root of trixie with nova-compute and libvirt')
    with roots.Root('trixie', PACKAGES['debian13'], network=True,
                    kvm_mode=0o600, binds=context.binds()) as root:
        here = system.System(root)
        _install(here)
        here.allow_kvm()
        here.start_controller(SOURCES)
        here.start_libvirt()
        yield _as_packaged(context, here)
        # What the check said is the remedy.
        here.sh(f'sed -i "s/^compute_driver.*/compute_driver = '
                f'kvm_ext.KVMDriver/" {_COMPUTE_CONF}')
        _write_conf(here)
        yield Layout(context, 'Debian 13, user nova').look(
            _starts(here, DEBIAN), agrees(here), here.guest_boot)
        yield _refused(context, here, 'Debian 13', DEBIAN)
        yield _full_disk(context, here)
        yield _loaded(context, here)
        yield _modular(context, here)
        here.stop('nova-compute')


def _write_conf(here: system.System, *more: system.Settings) -> None:
    here.write(system.NOVA_CONF, system.as_text(system.merged(
        system.COMMON, *more)), 0o640)
    here.sh(f'chgrp nova {system.NOVA_CONF}')


def _as_packaged(context: Context, here: system.System) -> report.Layout:
    """The README's nova.conf, and Debian's own nova-compute.conf after it."""
    _write_conf(here, _README)

    def starts() -> str:
        here.start_compute(DEBIAN)
        try:
            here.registered()
        except system.Wrong as e:
            if 'not with KVMDriver' in str(e):
                return "Nova's own driver runs, as Debian's file says"
            raise
        finally:
            here.stop('nova-compute')
        raise system.Wrong(f'KVMDriver runs in spite of {_COMPUTE_CONF}')

    def check() -> str:
        code, rows = here.host_check()
        found = rows['KVM401']
        if code != 2 or found['result'] != 'FAIL' or (
                _COMPUTE_CONF not in found['details']):
            raise system.Wrong(f'KVM401 does not name {_COMPUTE_CONF}: '
                               f'{system.told(code, rows)}')
        return f'exit code 2; KVM401 FAIL: {found["details"]}'

    return Layout(context, 'Debian 13, as packaged').look(
        starts, check, _no("Nova's own driver is to run"))


def _refused(context: Context, here: system.System, name: str,
             command: str) -> report.Layout:
    """A CPU that cannot be, so that the service ends and says so."""
    here.stop('nova-compute')
    _write_conf(here, {'kvm_ext': {'virt_type': 'qemu',
                                   'cpu_mode': 'host-passthrough'}})

    def starts() -> str:
        here.start_compute(command)
        code = here.ended()
        if code != 1 or 'host-passthrough' not in here.compute_log():
            raise system.Wrong(f'nova-compute ended with {code}: ' +
                               system.errors_of(here.compute_log()))
        return 'refuses, as it has to, and ends with exit code 1'

    def check() -> str:
        code, rows = here.host_check()
        if code != 2 or 'KVM402' not in system.bad(rows):
            raise system.Wrong(system.told(code, rows))
        return f'exit code 2; KVM402 FAIL: {system.bad(rows)["KVM402"]}'

    try:
        return Layout(context, f'{name}, refused CPU').look(
            starts, check, _no('no guest can have this CPU'))
    finally:
        here.stop('nova-compute')
        _write_conf(here)


def _full_disk(context: Context, here: system.System) -> report.Layout:
    """instances_path on a full file system of its own."""
    path = '/var/lib/nova/instances'
    here.stop('nova-compute')
    here.sh(f'mount -t tmpfs -o size=300m,mode=0755,uid=nova,gid=nova none '
            f'{path}; dd if=/dev/zero of={path}/filler bs=1M status=none '
            f'|| true')
    run = _starts(here, DEBIAN)

    def starts() -> str:
        run()
        row = system.wait_for('disabled service', lambda: (
            found := here.service()).get('disabled') and found)
        if 'KVM405' not in (row['disabled_reason'] or ''):
            raise system.Wrong(f'disabled for: {row["disabled_reason"]}')
        return f'scheduling is disabled: {row["disabled_reason"]}'

    def check() -> str:
        code, rows = here.host_check()
        if code != 2 or list(system.bad(rows)) != ['KVM405']:
            raise system.Wrong(system.told(code, rows))
        return f'full: {system.told(code, rows)}'

    def boots() -> str:
        here.sh(f'rm {path}/filler')
        system.wait_for('enabled service', lambda: not here.service()[
            'disabled'])
        return f'once there is room: service enabled; {here.guest_boot()}'

    try:
        return Layout(context, 'Debian 13, full disk').look(
            starts, check, boots)
    finally:
        here.stop('nova-compute')
        here.sh(f'rm -f {path}/filler; umount {path}')


def _loaded(context: Context, here: system.System) -> report.Layout:
    """More to do than the CPUs can, before anything of the layout runs."""
    here.stop('nova-compute')
    # Nothing that an earlier start has proved.
    here.sh('rm -rf /var/lib/nova/kvm-ext* /var/cache/nova-kvm-ext/probe*')
    loops = 8 * (os.cpu_count() or 1)
    # Kind to what else this machine does; the layout is kinder still. Each
    # ends by itself. In the foreground, or timeout takes a process group of
    # its own.
    load = subprocess.Popen(
        ['sh', '-c', f'for i in $(seq {loops}); do nice -n 5 timeout '
         '--foreground 900 sh -c "while :; do :; done" & done; wait'],
        start_new_session=True)
    try:
        return Layout(context, f'Debian 13, {loops} busy loops').look(
            _starts(here, f'nice -n 5 {DEBIAN}'), agrees(
                here, '--timeout', '500', users=('root',)),
            here.guest_boot)
    finally:
        os.killpg(load.pid, 15)
        load.wait()


def _modular(context: Context, here: system.System) -> report.Layout:
    """A daemon for each of libvirt's drivers, in libvirtd's place."""
    layout = Layout(context, 'Debian 13, modular daemons')
    daemons = [name for name in (
        'virtlogd', 'virtnodedevd', 'virtnwfilterd', 'virtsecretd',
        'virtstoraged', 'virtqemud') if here.path(
            f'/usr/sbin/{name}').exists()]
    if 'virtqemud' not in daemons:
        why = _no('libvirt of this Debian has no virtqemud, only libvirtd')
        return layout.look(why, why, why)
    here.stop('nova-compute')
    here.stop('libvirtd')
    here.sh('rm -f /run/libvirt/libvirt-sock*')
    here.start_libvirt(daemons)
    return layout.look(_starts(here, DEBIAN), agrees(here),
                       here.guest_boot)


# Nova here, libvirt there


def split(context: Context) -> Iterator[report.Layout]:
    """As Kolla: two roots, one network, another user for QEMU."""
    context.say('roots of trixie, with Nova alone and with libvirt alone')
    with tempfile.TemporaryDirectory(
            prefix='nova-kvm-ext-layout-', dir=namespaces.BASE) as shared:
        os.chmod(shared, 0o755)
        # What Kolla's containers share: libvirt's socket, and Nova's state.
        binds = []
        for name, path in (('run', '/run/libvirt'), ('nova', '/var/lib/nova')):
            pathlib.Path(shared, name).mkdir(mode=0o755)
            binds.append((f'{shared}/{name}', path))
        with roots.Root(
                'trixie', PACKAGES['debian13'], network=True,
                kvm_mode=0o600, hostname='compute',
                binds=[*context.binds(), *binds]) as nova_root, roots.Root(
                    'trixie', PACKAGES['split libvirt'], network=nova_root,
                    kvm_mode=0o600, hostname='compute',
                    binds=binds) as libvirt_root:
            here, there = (system.System(nova_root),
                           system.System(libvirt_root))
            _install(here)
            here.sh(_NO_HYPERVISOR)
            for one in (here, there):
                one.sh(f'groupmod -g {_KOLLA_LIBVIRT} libvirt\n'
                       'if getent passwd nova > /dev/null; then\n'
                       f'groupmod -g {_KOLLA_NOVA} nova\n'
                       f'usermod -u {_KOLLA_NOVA} -g nova nova\n'
                       f'else groupadd -g {_KOLLA_NOVA} nova\n'
                       f'useradd -M -u {_KOLLA_NOVA} -g nova '
                       '-d /var/lib/nova nova\n'
                       'fi\nusermod -aG libvirt nova\n'
                       'if [ -e /dev/kvm ]; then chgrp libvirt /dev/kvm; '
                       'chmod 0660 /dev/kvm; fi')
            here.sh('install -d -o nova -g nova /var/lib/nova\n'
                    'install -d -m 0711 /var/lib/nova/boot\n'
                    'chown -R nova:nova /var/log/nova\n'
                    'chgrp -R nova /etc/nova')
            there.write('/etc/libvirt/qemu.conf',
                        'user = "nova"\ngroup = "nova"\n'
                        'security_driver = "none"\n', 0o600)
            here.start_controller(SOURCES)
            there.start_libvirt(
                conf='listen_tls = 0\nlisten_tcp = 1\nauth_tcp = "none"\n'
                'listen_addr = "127.0.0.1"\n', options='--listen')
            for name, uri in (
                    ('shared socket', 'qemu:///system'),
                    ('TCP', 'qemu+tcp://127.0.0.1/system')):
                _write_conf(here, {'libvirt': {'connection_uri': uri}})
                yield Layout(context, f'split, {name}').look(
                    _starts(here, DEBIAN), agrees(here),
                    lambda: here.guest_boot(directory='/var/lib/nova/boot'))
            here.stop('nova-compute')
            there.stop('libvirtd')
            yield _libvirt_down(context, here)


def _libvirt_down(context: Context, here: system.System) -> report.Layout:
    """The libvirt of another root does not run, as when Kolla restarts it."""
    def starts() -> str:
        here.start_compute(DEBIAN)
        code = here.ended()
        if code != 1:
            raise system.Wrong(f'nova-compute ended with {code}: ' +
                               system.errors_of(here.compute_log()))
        return 'ends with exit code 1: ' + system.errors_of(
            here.compute_log())

    def check() -> str:
        code, rows = here.host_check()
        found = rows['KVM502']
        if code != 2 or list(system.bad(rows)) != ['KVM502'] or (
                'apt-get' in found['remedy']):
            raise system.Wrong(f'{system.told(code, rows)}\nremedy: '
                               f'{found["remedy"]}')
        return f'{system.told(code, rows)}\nremedy: {found["remedy"]}'

    return Layout(context, 'split, libvirt down').look(
        starts, check, _no('there is no libvirt to boot it'))


# Debian 12


def debian12(context: Context) -> Iterator[report.Layout]:
    """A venv of Nova 34: Debian's own Nova is too old."""
    venv = context.cache / 'layouts-nova-34'
    packages = PACKAGES['debian12']
    if not (venv / 'ready').exists():
        context.say('a venv of Nova 34 for bookworm')
        venv.mkdir(parents=True, exist_ok=True)
        with roots.Root('bookworm', packages, binds=[
                *context.binds(), (str(venv), '/opt/nova')]) as root:
            system.System(root).sh(
                'python3 -m venv /opt/nova\n'
                'grep -v "^libvirt-python" '
                f'{SOURCES}/tools/constraints/nova-34.txt > /tmp/pins\n'
                'cp /usr/lib/python3/dist-packages/libvirt*.py '
                '/usr/lib/python3/dist-packages/libvirt*mod*.so '
                '/opt/nova/lib/python3.11/site-packages/\n'
                'grep -v "^libvirt-python" '
                f'{SOURCES}/requirements.txt > /tmp/wanted\n'
                # The bindings are Debian's, so that no compiler is needed.
                '/opt/nova/bin/pip install --quiet -c /tmp/pins '
                'PyMySQL -r /tmp/wanted\ntouch /opt/nova/ready',
                timeout=1800)
    context.say('a root of bookworm with Nova 34 in a venv')
    with roots.Root('bookworm', packages, network=True, binds=[
            *context.binds(), (str(venv), '/opt/nova')]) as root:
        here = system.System(root, '/opt/nova/bin')
        here.sh(
            '/opt/nova/bin/pip install --quiet --no-deps --no-index '
            f'--force-reinstall {_WHEELS}/*.whl\n'
            'useradd --system --user-group --home-dir /var/lib/nova nova\n'
            'usermod -aG libvirt,kvm nova\n'
            'mkdir -p /etc/nova; cp -r /opt/nova/etc/nova/. /etc/nova/')
        # As the installation guide of Nova has it for packages.
        here.write('/etc/sudoers.d/nova',
                   'Defaults:nova secure_path = "/opt/nova/bin:/usr/sbin:'
                   '/usr/bin:/sbin:/bin"\n'
                   'nova ALL = (root) NOPASSWD: /opt/nova/bin/nova-rootwrap '
                   '/etc/nova/rootwrap.conf *\n', 0o440)
        here.sh('sed -i "s,^exec_dirs=,&/opt/nova/bin\\,," '
                '/etc/nova/rootwrap.conf')
        here.allow_kvm()
        here.start_controller(SOURCES)
        here.start_libvirt()
        command = ('setpriv --reuid nova --regid nova --init-groups '
                   f'/opt/nova/bin/nova-compute --log-file {system.LOG}')
        yield Layout(context, 'Debian 12, Nova 34 in a venv').look(
            _starts(here, command), agrees(here), here.guest_boot)
        yield _refused(context, here, 'Debian 12', command)
        here.stop('nova-compute')


ALL: dict[str, Callable[[Context], Iterator[report.Layout]]] = {
    'debian13': debian13, 'split': split, 'debian12': debian12}
