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

"""Known errors: reaching libvirt and its daemons, here and on other hosts."""

from nova_kvm_ext.known_errors.row import KnownError

# Ends of "Failed to connect socket to '...'" where nobody listens.
_NOBODY = r"': (No such file or directory|Connection refused)"

# Daemons of libvirt other than those that clients of QEMU guests connect to,
# and what is missing without each (https://libvirt.org/daemons.html).
_DAEMONS = (
    ('virtlogd', 'which writes the guests\' console logs'),
    ('virtlockd', 'which prevents that a disk is used twice'),
    ('virtnetworkd', 'which has libvirt\'s own networks'),
    ('virtsecretd', 'which has the secrets that open storage'),
    ('virtnodedevd', 'which knows the host\'s devices'),
    ('virtstoraged', 'which has libvirt\'s storage pools'),
    ('virtinterfaced', 'which knows the host\'s network interfaces'),
    ('virtnwfilterd', 'which has the network filters'),
)

_NAMES = [name for name, _ in _DAEMONS]


def _daemon(name: str, what: str) -> KnownError:
    return KnownError(
        f'{name}-down',
        rf"Failed to connect socket to '[^']*/{name}(-admin)?-sock(-ro)?"
        rf'{_NOBODY}',
        f'{name}, {what}, is not running.',
        f'Start it: systemctl enable --now {name}.socket; without systemd '
        f'{name} -d.',
        'libvirt 9.0',
        (f"Failed to connect socket to '/run/libvirt/{name}-sock': No such "
         f'file or directory',))


ROWS: tuple[KnownError, ...] = (
    KnownError(
        'libvirt-down',
        # Any other: an address can name a socket of any name.
        rf"Failed to connect socket to '(?![^']*/({'|'.join(_NAMES)})(-admin)?"
        rf"-sock(-ro)?')[^']*{_NOBODY}",
        'libvirt is not running (its daemon is the one that the socket is '
        'named after, or libvirtd), or it listens elsewhere.',
        'Start it (systemctl start libvirtd, or virtqemud.socket and '
        'virtproxyd.socket where libvirt has a daemon for each driver; '
        'without systemd virtlogd -d and libvirtd -d), or correct [libvirt] '
        'connection_uri.',
        'libvirt 9.0',
        ("Failed to connect socket to '/var/run/libvirt/libvirt-sock': No "
         'such file or directory',
         "Failed to connect socket to '/var/run/libvirt/virtqemud-sock': "
         'Connection refused',
         "Failed to connect socket to '/var/run/libvirt/virtproxyd-sock-ro': "
         'Connection refused')),
    *(_daemon(*daemon) for daemon in _DAEMONS),
    KnownError(
        'libvirt-permission',
        r"Failed to connect socket to '[^']*': Permission denied"
        r'|authentication unavailable: no polkit agent'
        r'|authentication failed: access denied by policy'
        r'|authentication cancelled: user cancelled',
        'This user has no permission to connect to libvirt.',
        'Add the user to the group that unix_sock_group in libvirtd.conf or '
        'polkit allows (usually libvirt) and start the service or the session '
        'again; or run as root.',
        'libvirt 9.0; the last two from the source of 9.0 (src/util/'
        'virpolkit.c)',
        ("Failed to connect socket to '/var/run/libvirt/libvirt-sock': "
         'Permission denied',
         'authentication unavailable: no polkit agent available to '
         "authenticate action 'org.libvirt.unix.manage'",
         'authentication failed: access denied by policy',
         'authentication cancelled: user cancelled authentication process')),
    KnownError(
        'libvirt-gone',
        r'Cannot write data: Broken pipe'
        r'|End of file while reading data'
        r'|Cannot recv data: Connection reset by peer',
        'The connection to libvirt broke in the middle of a call: libvirt '
        'ended or was restarted, or, with an address of qemu+ssh, its ssh '
        'ended.',
        'Find the reason: journalctl -u libvirtd -u virtqemud, and an ssh to '
        'that host. Then try again; guests keep running.',
        'libvirt 9.0',
        ('Cannot write data: Broken pipe',
         'End of file while reading data: Input/output error',
         'Cannot recv data: Connection reset by peer')),

    # Another host's
    KnownError(
        'remote-down',
        r"unable to connect to server at '[^']*:(?!49\d{3}')\d+'",
        'The libvirt of another host cannot be reached: it is not running, '
        'it does not listen on the network, or a firewall is between.',
        'On that host start libvirtd-tcp.socket or libvirtd-tls.socket '
        '(virtproxyd-... where libvirt has a daemon for each driver) and '
        'open port 16509 (tcp) or 16514 (tls). The address is that of '
        '[libvirt] connection_uri, or of live_migration_uri in a migration.',
        'libvirt 9.0',
        ("unable to connect to server at '127.0.0.1:1': Connection refused",
         "unable to connect to server at '10.0.0.2:16509': No route to "
         'host')),
    KnownError(
        'migration-connect',
        r"unable to connect to server at '[^']*:49\d{3}'",
        'The QEMU of the other host, which waits for a migrating guest, '
        'cannot be reached.',
        'Open ports 49152 to 49215 there (migration_port_min and _max in '
        'qemu.conf), and check [libvirt] live_migration_inbound_addr.',
        'libvirt 9.0',
        ("unable to connect to server at '127.0.0.1:49152': Connection "
         'refused',)),
    KnownError(
        'remote-name',
        r"Unable to resolve address '|Could not resolve hostname",
        'This host does not know the other host\'s name.',
        'Put it into DNS or /etc/hosts, or set [libvirt] connection_uri, or '
        'for migrations live_migration_inbound_addr there, to an address.',
        'libvirt 9.0',
        ("Unable to resolve address 'nohost.invalid' service '16509': Name or "
         'service not known',
         'Cannot recv data: ssh: Could not resolve hostname nohost.invalid: '
         'Name or service not known: Connection reset by peer')),
    KnownError(
        'ssh-host-key',
        r'Host key verification failed',
        'ssh does not know the other host\'s key, or the key has changed.',
        'As the user of this service, ssh to that host once and accept the '
        'key (after a change: ssh-keygen -R HOST first), or put the key into '
        '/etc/ssh/ssh_known_hosts.',
        'libvirt 9.0, with what OpenSSH says',
        ('Cannot recv data: Host key verification failed.: Connection reset '
         'by peer',)),
    KnownError(
        'ssh-login',
        r'Permission denied \([\w,-]*(publickey|password|keyboard)',
        'The other host\'s ssh refuses this user.',
        'Give the user of this service a key without a passphrase that the '
        'other host\'s ~/.ssh/authorized_keys has, and name that user and '
        'key in the address (qemu+ssh://USER@HOST/system?keyfile=...).',
        'libvirt 9.0, with what OpenSSH says',
        ('Cannot recv data: nobody@10.0.0.2: Permission denied (publickey,'
         'password).: Connection reset by peer',)),
    KnownError(
        'ssh-connect',
        r'ssh: connect to host \S+ port \d+: |kex_exchange_identification: ',
        'The other host\'s ssh cannot be reached, or closes the connection '
        'at once.',
        'Start sshd there and open its port (22, or the one of the address); '
        'where it closes, check MaxStartups and its log.',
        'libvirt 9.0, with what OpenSSH says',
        ('Cannot recv data: ssh: connect to host 127.0.0.1 port 22: '
         'Connection refused: Connection reset by peer',
         'Cannot recv data: kex_exchange_identification: Connection closed '
         'by remote host: Connection reset by peer')),
    KnownError(
        'ssh-netcat',
        r'Cannot recv data: (Ncat: |.*\bnc: (unix connect failed|command not '
        r'found|not found)|.*\bvirt-ssh-helper: (command )?not found)',
        'ssh reached the other host, and the program that connects to '
        'libvirt\'s socket there, nc or virt-ssh-helper, is missing or finds '
        'no libvirt.',
        'On that host start libvirt, and install it (it brings '
        'virt-ssh-helper) or netcat-openbsd; name another socket in the '
        'address with ?socket=PATH.',
        'libvirt 9.0, with what nc and sh say',
        ('Cannot recv data: Ncat: No such file or directory.: Connection '
         'reset by peer',
         'Cannot recv data: nc: unix connect failed: No such file or '
         'directory: Connection reset by peer',
         'Cannot recv data: bash: line 1: nc: command not found: Connection '
         'reset by peer',
         'Cannot recv data: sh: 1: virt-ssh-helper: not found: Connection '
         'reset by peer')),
    KnownError(
        'sasl',
        r'authentication failed: authentication failed'
        r'|(Failed to (start|step)|no) SASL (negotiation|mechanisms)'
        r'|SASL mechanism \S+ not supported by server'
        r'|(Username|Password) request failed',
        'The other libvirt asks for a SASL login (auth_tcp or auth_tls = '
        'sasl), and what it got is missing or wrong, or the two have no '
        'mechanism in common.',
        'Give this user the credentials (/etc/libvirt/auth.conf, or a '
        'Kerberos ticket), add it there (saslpasswd2 -a libvirt USER), and '
        'compare mech_list in /etc/sasl2/libvirt.conf and the installed '
        'mechanisms (Debian: libsasl2-modules...) of both hosts.',
        'libvirt 9.0; all but the first from the source of 9.0 (src/rpc/'
        'virnetsaslcontext.c, src/remote/remote_driver.c)',
        ('authentication failed: authentication failed',
         'authentication failed: Failed to start SASL negotiation: -4 '
         '(SASL(-4): no mechanism available: No worthy mechs found)',
         'authentication failed: Failed to step SASL negotiation: -1 '
         '(SASL(-1): generic failure)',
         'authentication failed: no SASL mechanisms are available',
         'authentication failed: SASL mechanism scram-sha-256 not supported '
         'by server',
         'authentication failed: Username request failed')),
    KnownError(
        'tls-file',
        r"Cannot read (CA|client|server) (certificate|private key|key) '"
        r"|Certificate '[^']*' does not exist"
        r"|Key '[^']*' does not exist, but certificate '"
        r'|Unable to set x509 (CA certificate|key and certificate): '
        r'|Unable to import (client|server) certificate ',
        'libvirt should use TLS, and a certificate or key of this host is '
        'missing, cannot be read, or does not fit the other.',
        'Install CA certificate, certificate and key in /etc/pki/CA and '
        '/etc/pki/libvirt on every host, readable for the user of the '
        'service, or use another transport ([libvirt] connection_uri, '
        'live_migration_scheme).',
        'libvirt 9.0, the third libvirt 12.8; the others from the sources of '
        'both (src/rpc/virnettlscontext.c)',
        ("Cannot read CA certificate '/etc/pki/CA/cacert.pem': No such file "
         'or directory',
         "Cannot read client certificate '/etc/pki/libvirt/clientcert.pem': "
         'Permission denied',
         "CA certificate '/etc/pki/CA/cacert.pem' does not exist: No such "
         'file or directory',
         "Certificate '/etc/pki/libvirt/clientcert.pem' does not exist, but "
         "key '/etc/pki/libvirt/private/clientkey.pem' does: No such file or "
         'directory',
         "Key '/etc/pki/libvirt/private/clientkey.pem' does not exist, but "
         "certificate '/etc/pki/libvirt/clientcert.pem' does: No such file or "
         'directory',
         'Unable to set x509 key and certificate: /etc/pki/libvirt/private/'
         'clientkey.pem, /etc/pki/libvirt/clientcert.pem: Error while reading '
         'file.',
         'Unable to import client certificate /etc/pki/libvirt/'
         'clientcert.pem')),
    KnownError(
        'tls-own-certificate',
        r'Our own certificate \S+ failed validation'
        r'|The (CA|server|client) certificate \S+ (has expired|is not yet '
        r'active)'
        r'|certificate \S+ (usage does not permit|purpose does not allow|'
        r'basic constraints)',
        'libvirt cannot use a certificate of this host: it has expired, is '
        'from another CA than this host\'s CA certificate, or is not made for '
        'this use.',
        'Make it again with the CA of all hosts (openssl verify -CAfile shows '
        'why it fails), and check the clock.',
        'libvirt 9.0; the last from the source of 9.0 (src/rpc/'
        'virnettlscontext.c)',
        ('Our own certificate /etc/pki/libvirt/clientcert.pem failed '
         'validation against /etc/pki/CA/cacert.pem: The certificate '
         'hasn\'t got a known issuer.',
         'The client certificate /etc/pki/libvirt/clientcert.pem has expired',
         'Certificate /etc/pki/libvirt/servercert.pem purpose does not allow '
         'use for with a TLS server')),
    KnownError(
        'tls-peer-certificate',
        r"Failed to verify peer's certificate"
        r'|Certificate \S+ owner does not match the hostname'
        r"|Client's Distinguished Name is not on the list",
        'The other host\'s certificate is not accepted: it is of another '
        'CA, has expired, or is not for the name in the address.',
        'Use one CA for all hosts, and the name or address that the other '
        'host\'s certificate has as subjectAltName (openssl x509 -text). The '
        'log of libvirt says which of them it is.',
        'libvirt 9.0; the last two from the source of 9.0 (src/rpc/'
        'virnettlscontext.c)',
        ("authentication failed: Failed to verify peer's certificate",
         'Certificate [session] owner does not match the hostname compute2',
         "Client's Distinguished Name is not on the list of allowed clients "
         '(tls_allowed_dn_list).')),
    KnownError(
        'tls-refused',
        r'Unable to read TLS confirmation',
        'The other libvirt ended the TLS connection: it does not accept '
        'this host\'s client certificate, or this host has sent none.',
        'Install clientcert.pem and clientkey.pem in /etc/pki/libvirt, of the '
        'CA that the other host has; check tls_allowed_dn_list in its '
        'libvirtd.conf, and at its log for the reason.',
        'libvirt 9.0',
        ('Unable to read TLS confirmation: Input/output error',)),
    KnownError(
        'tls-handshake',
        r'TLS handshake failed',
        'What listens at that port does not speak TLS, or no version of it '
        'that this host allows.',
        'Compare the address (16514 is the port of qemu+tls, 16509 that of '
        'qemu+tcp) with listen_tls and tls_port of the other libvirt, and '
        'tls_priority of both.',
        'libvirt 9.0',
        ('authentication failed: TLS handshake failed Error in the pull '
         'function.',)),
)
