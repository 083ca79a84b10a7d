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

"""Known errors of the connection to libvirt, produced for real."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys

import libvirt

from nova_kvm_ext import errors
from nova_kvm_ext import known_errors
from nova_kvm_ext.tests.functional import faults
from nova_kvm_ext.tests.functional import libvirtd

# Two authorities, a server of the first, and clients' directories as pkipath
# of libvirt's addresses has them.
_PKI = """
authority() {
    mkdir $1
    openssl req -x509 -newkey rsa:2048 -nodes -keyout $1/key.pem \\
        -out $1/cert.pem -subj /CN=$1 -days 3 \\
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign
}
issue() {
    mkdir -p $1
    openssl req -newkey rsa:2048 -nodes -keyout $1/key.pem -out $1/request \\
        -subj /CN=$1
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\n%s\\n%s\\n%s\\n' \\
        extendedKeyUsage=serverAuth,clientAuth \\
        keyUsage=digitalSignature,keyEncipherment basicConstraints=CA:FALSE \\
        > extensions
    openssl x509 -req -in $1/request -CA $2/cert.pem -CAkey $2/key.pem \\
        -CAcreateserial -out $1/cert.pem $3 -extfile extensions
}
client() {
    mkdir $1
    cp $2/cert.pem $1/cacert.pem
    [ -z "$3" ] || { cp $3/cert.pem $1/clientcert.pem;
                     cp $3/key.pem $1/clientkey.pem; }
}
authority ours
authority theirs
issue server ours '-days 2'
issue mine ours '-days 2'
issue stranger theirs '-days 2'
# OpenSSL 3.5 takes no negative number of days, 3.0 no dates.
old='-days -1'
! openssl x509 -help 2>&1 | grep -q not_after ||
    old='-not_before 20200101000000Z -not_after 20200102000000Z'
issue old ours "$old"
client good ours mine
client other-ca theirs stranger
client other-client ours stranger
client expired ours old
client none ours ''
"""


def free_ports(count: int) -> list[int]:
    """Ports of this host that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(('127.0.0.1', 0))
        return [each.getsockname()[1] for each in sockets]


class LibvirtTestCase(faults.FaultTestCase):

    def test_down(self) -> None:
        socket_path = f'{self.private.directory}/dead-libvirt-sock'
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(socket_path)
        for path in ('/none/libvirt-sock', socket_path):
            self.assert_explained('libvirt-down', lambda: libvirt.open(
                f'qemu+unix:///system?socket={path}'))

    def test_daemons(self) -> None:
        for name in (row.name.removesuffix('-down')
                     for row in known_errors.TABLE
                     if re.fullmatch('virt[a-z]+-down', row.name)):
            for end in ('', '-ro'):
                self.assert_explained(
                    f'{name}-down', lambda: libvirt.open(
                        f'qemu+unix:///system?socket=/none/{name}-sock{end}'))
        for name in ('virtqemud', 'virtproxyd'):
            self.assert_explained('libvirt-down', lambda: libvirt.open(
                f'qemu+unix:///system?socket=/none/{name}-sock'))

    def test_ssh(self) -> None:
        """What ssh and nc say, through the real libvirt."""
        ssh = self.instances / 'ssh'
        for said, name in (
                ('Host key verification failed.', 'ssh-host-key'),
                ('nobody@10.0.0.2: Permission denied (publickey).',
                 'ssh-login'),
                ('ssh: connect to host 10.0.0.2 port 22: Connection refused',
                 'ssh-connect'),
                ('kex_exchange_identification: read: Connection reset by '
                 'peer', 'ssh-connect'),
                ('ssh: Could not resolve hostname nohost: Name or service '
                 'not known', 'remote-name'),
                ('Ncat: No such file or directory.', 'ssh-netcat'),
                ('nc: unix connect failed: Permission denied', 'ssh-netcat'),
                ('bash: line 1: nc: command not found', 'ssh-netcat'),
                ('sh: 1: virt-ssh-helper: not found', 'ssh-netcat')):
            # It waits for the first bytes: libvirt says what ssh said only
            # if it could send them.
            ssh.write_text(f'#!/bin/sh\necho "{said}" >&2\n'
                           f'head -c 1 > /dev/null\nexit 255\n')
            ssh.chmod(0o755)
            self.assert_explained(name, lambda: libvirt.open(
                f'qemu+ssh://10.0.0.2/system?command={ssh}'))

    def test_tls_and_sasl(self) -> None:
        """A libvirtd on the network, and those that it does not let in."""
        if shutil.which('openssl') is None:
            self.skipTest('openssl is not installed')
        pki = self.instances / 'pki'
        pki.mkdir()
        subprocess.run(['sh', '-ec', _PKI], cwd=pki, check=True,
                       capture_output=True)
        tls, tcp = free_ports(2)
        self.private.stop_libvirtd()
        self.inside(f"""cat >> /etc/libvirt/libvirtd.conf <<'END'
listen_tcp = 1
listen_addr = "127.0.0.1"
tls_port = "{tls}"
tcp_port = "{tcp}"
auth_tcp = "sasl"
key_file = "{pki}/server/key.pem"
cert_file = "{pki}/server/cert.pem"
ca_file = "{pki}/ours/cert.pem"
END
libvirtd --daemon --listen --config /etc/libvirt/libvirtd.conf \
    --pid-file /run/libvirt/libvirtd.pid""")
        address = f'qemu+tls://localhost:{tls}/system?pkipath={pki}/'
        libvirt.open(address + 'good').close()
        for name, uri in (
                ('tls-peer-certificate', address + 'other-ca'),
                ('tls-own-certificate', address + 'other-client'),
                ('tls-own-certificate', address + 'expired'),
                ('tls-refused', address + 'none'),
                ('tls-file', address + 'nowhere'),
                ('tls-handshake', address.replace(str(tls), str(tcp)) +
                 'good'),
                ('sasl', f'qemu+tcp://localhost:{tcp}/system')):
            self.assert_explained(name, lambda: libvirt.open(uri))

    def test_gone(self) -> None:
        self.private.stop_libvirtd()
        self.assert_explained('libvirt-gone', self.connection.listAllDomains)
        self.private.start_libvirtd()

    def test_permission(self) -> None:
        """Another user than root, who has no say here."""
        # Python itself may be where that user may not go.
        result = subprocess.run(
            [sys.executable, '-c', (
                'import libvirt, os, sys\n'
                'os.setgroups([]); os.setgid(65534); os.setuid(65534)\n'
                'libvirt.registerErrorHandler(lambda c, e: None, None)\n'
                'try: libvirt.open(sys.argv[1])\n'
                'except libvirt.libvirtError as e: print(e)'),
             self.private.uri], capture_output=True, text=True, check=True)
        self.assertEqual('libvirt-permission',
                         errors.explain(result.stdout).name,
                         result.stderr)

    def test_virtlogd(self) -> None:
        # libvirtd starts it where it finds the program.
        self.inside(
            'kill $(cat /run/libvirt/virtlogd.pid); '
            'mount --no-mtab --bind /dev/null $(command -v virtlogd)')
        libvirtd.wait_for(lambda: not any(
            os.path.basename(arguments[0]) == 'virtlogd' for arguments in
            libvirtd.processes_of(self.private.directory).values()),
            'end of virtlogd')
        self.assert_explained('virtlogd-down', lambda: self.start(
            faults.domain()))
