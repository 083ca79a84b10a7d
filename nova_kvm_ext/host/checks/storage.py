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

"""Disks in Ceph: what Nova, QEMU and libvirt need for them.

Codes KVM6xx. Pure. A FAIL means that no guest with a disk that Nova makes
runs. Guests that boot from a volume may run, so the service starts anyway.
"""

import errno as errno_
import signal

from nova_kvm_ext import errors
from nova_kvm_ext.host.checks import causes
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model

GROUP = verdict.Group()

_PROGRAMS = ('ceph', 'rbd')
# What Ceph's library says of a client or key that Ceph does not take.
_REFUSED = (errno_.EACCES, errno_.EPERM)

_NO_XML = ('Nova cannot write the XML of a disk in Ceph, so guests with a '
           'disk that Nova creates do not run')
_MON_CAPABILITY = ('The user needs a capability for the monitors (mon '
                   '\'profile rbd\').')


def _unused(facts: model.HostFacts) -> verdict.Said | None:
    """SKIP where nova.conf has no use for Ceph itself."""
    options = facts.options
    if options.ceph_disks:
        return None
    volumes = (' Cinder\'s volumes need neither Ceph\'s Python modules nor '
               'Nova\'s pool.' if options.ceph else '')
    return verdict.skip(
        f'[libvirt] images_type = {errors.clean(options.images_type)}: Nova '
        f'creates no disk in Ceph.{volumes}'.rstrip('.'))


def _client(facts: model.HostFacts) -> str:
    return f'client.{errors.clean(facts.options.rbd_user or "admin")}'


def _correct_user(facts: model.HostFacts) -> str:
    """How to correct the name of the user."""
    if (facts.options.rbd_user or '').startswith('client.'):
        return ('remove "client." from [libvirt] rbd_user: Ceph\'s library '
                'puts it before the name')
    return 'correct [libvirt] rbd_user'


def _weigh(facts: model.HostFacts, details: str, remedy: str) -> verdict.Said:
    """What keeps every disk in Ceph from being used."""
    if facts.options.ceph_disks:
        return verdict.fail(
            f'{details}: guests with a disk that Nova creates do not run',
            remedy)
    return verdict.warn(
        f'{details}: guests with a volume in Ceph do not run', remedy)


def _no_answer(facts: model.HostFacts) -> verdict.Said | None:
    """Why nova-compute's Python has told nothing."""
    ceph = facts.storage.ceph
    if ceph.elsewhere:
        return verdict.skip(f'not known: {ceph.unknown}',
                            'Run this command where nova-compute runs.')
    if ceph.unknown:
        return verdict.warn(
            f'not known: {ceph.python} {ceph.unknown}'
            if ceph.python not in ceph.unknown else
            f'not known: {ceph.unknown}',
            'Run nova-kvm-ext host check again when this host is less busy, '
            'or start nova-compute and read its log.')
    if not ceph.asked:
        return verdict.skip('Ceph was not asked')
    return None


@GROUP.check('KVM601', 'Ceph for Nova', proof=(
    'With images_type = rbd, nova-compute\'s own Python does not import rados '
    'or rbd, or there is no program ceph where nova-compute looks for '
    'programs. Nova needs them to report the size of the pool to the '
    'scheduler, and to create each disk.'))
def _programs(facts: model.HostFacts) -> verdict.Said:
    said = _unused(facts) or _no_answer(facts)
    if said is not None:
        return said
    ceph = facts.storage.ceph
    missing = [(name, why) for name, why in ceph.modules.items() if why]
    if missing:
        name, why = missing[0]
        packages = ' '.join(f'python3-{name}' for name, _ in missing)
        return verdict.fail(
            f'{ceph.python} does not import '
            f'{" and ".join(name for name, _ in missing)} ({why}): guests '
            f'with a disk that Nova creates do not run',
            f'{causes.install(facts, packages)}; a virtual environment sees '
            f'them only if it was made with --system-site-packages. Then '
            f'restart nova-compute.')
    install = causes.install(facts, 'ceph-common')
    if ceph.programs.get('ceph') is None:
        return verdict.fail(
            'there is no program ceph, with which Nova reads the size of its '
            'pool: the scheduler does not choose this host', install)
    if ceph.programs.get('rbd') is None:
        return verdict.warn(
            'there is no program rbd, with which Nova imports an image that '
            'Ceph cannot clone', install)
    return verdict.passed(
        f'{ceph.python} has rados and rbd; ' + ', '.join(
            str(ceph.programs[name]) for name in _PROGRAMS))


@GROUP.check('KVM602', 'Ceph in QEMU', proof=(
    'With images_type = rbd, the QEMU that libvirt reports says that it has '
    'no driver rbd, and libvirt and this process have the same file system.'
))
def _driver(facts: model.HostFacts) -> verdict.Said:
    if not facts.options.ceph:
        return verdict.skip('nova.conf names no Ceph ([libvirt] images_type, '
                            'rbd_user, rbd_secret_uuid)')
    storage = facts.storage
    if storage.driver:
        return verdict.passed(f'{facts.emulator.path} has the driver rbd')
    if storage.driver is None:
        return causes.weigh(facts, verdict.warn(
            f'whether QEMU has the driver rbd is not known: '
            f'{storage.driver_error}', 'Run nova-kvm-ext host check again '
            'when this host is less busy.')) if facts.place.here else (
            verdict.skip(f'not known: {causes.elsewhere(facts)}'))
    return causes.weigh(facts, _weigh(
        facts, f'{facts.emulator.path} has no driver rbd '
        f'({storage.driver_error})',
        causes.install(facts, facts.distribution.qemu_rbd)))


@GROUP.check('KVM603', 'Secret of Ceph in libvirt', proof=(
    'With images_type = rbd, libvirt says that it does not have the secret of '
    'rbd_secret_uuid, or that the secret has no value; or Ceph refuses the '
    'value as the key of rbd_user; or libvirt says that rbd_secret_uuid is '
    'not a UUID, or that the secret has another usage than ceph; or only one '
    'of rbd_user and rbd_secret_uuid is set, and Nova cannot write the XML of '
    'a disk (TypeError: Argument must be bytes or unicode).'))
def _secret(facts: model.HostFacts) -> verdict.Said:
    options, secret = facts.options, facts.storage.secret
    if not options.ceph:
        return verdict.skip('nova.conf names no Ceph ([libvirt] images_type, '
                            'rbd_user, rbd_secret_uuid)')
    uuid = errors.clean(options.rbd_secret)
    # Of volumes Cinder says both.
    if options.ceph_disks and uuid and not options.rbd_user:
        return verdict.fail(
            '[libvirt] rbd_secret_uuid is set and rbd_user is not: ' + _NO_XML,
            'Set [libvirt] rbd_user to the name of the Ceph user, without '
            '"client.".')
    if options.ceph_disks and not uuid and options.rbd_user is not None:
        return verdict.fail(
            '[libvirt] rbd_user is set and rbd_secret_uuid is not: ' + _NO_XML,
            'Set [libvirt] rbd_secret_uuid to the UUID of a secret that virsh '
            'secret-list shows; or remove rbd_user, if Ceph requires no key.'
        )
    if not uuid:
        return verdict.skip('[libvirt] rbd_secret_uuid is not set')
    if secret.malformed:
        return _weigh(
            facts, f'[libvirt] rbd_secret_uuid = {uuid} is not a UUID '
            f'({secret.error})',
            'Set [libvirt] rbd_secret_uuid to the UUID of a secret that '
            'virsh secret-list shows.')
    define = (f'Run virsh secret-define, with the UUID {uuid} and the usage '
              f'type ceph; then virsh secret-set-value, with the key of '
              f'{_client(facts)}.')
    if secret.there is False:
        return _weigh(facts, f'libvirt has no secret {uuid}', define)
    if secret.there is None:
        return verdict.skip(
            f'not known: libvirt says {secret.error}' if secret.error else
            'libvirt did not answer (KVM502)')
    if secret.usage:
        return _weigh(
            facts, f'the secret {uuid} of libvirt has the usage '
            f'{secret.usage}, so libvirt refuses to use it for Ceph',
            'Set [libvirt] rbd_secret_uuid to the UUID of a secret with the '
            'usage ceph (virsh secret-list); or define one: virsh '
            'secret-define, with another UUID and the usage type ceph.')
    if secret.has_value is False:
        return _weigh(
            facts, f'the secret {uuid} of libvirt has no value',
            f'virsh secret-set-value {uuid}, with the key of '
            f'{_client(facts)} (ceph auth get-key {_client(facts)}). An '
            f'ephemeral secret loses its value when libvirt restarts.')
    ceph = facts.storage.ceph
    if ceph.key_error and ceph.cephx and (
            ceph.key_errno in _REFUSED or
            # Of the value, where the keyring's key has no such error: of
            # mon_host, or auth_client_required, it says nothing.
            ceph.key_errno in (errno_.EINVAL, errno_.EOPNOTSUPP) and
            ceph.key_errno != ceph.errno):
        return _weigh(
            facts, f'Ceph refuses the value of the secret {uuid} as the key '
            f'of {_client(facts)} ({ceph.key_error})',
            f'virsh secret-set-value {uuid}, with the output of ceph auth '
            f'get-key {_client(facts)}; or {_correct_user(facts)}. If both '
            f'are right: {_MON_CAPABILITY}')
    taken = (', which Ceph accepts as the key of ' + _client(facts)
             if ceph.key_error == '' else
             '; whether the value is right was not tried')
    return verdict.passed(
        f'libvirt has the secret {uuid}' + (
            ' with a value' + taken if secret.has_value else
            '; the secret is private, so its value was not tried'))


def _own_eyes(facts: model.HostFacts, said: verdict.Said) -> verdict.Said:
    """A fault of files, which another user may see otherwise."""
    if said.result == verdict.FAIL and not (facts.root or facts.service):
        return verdict.warn(f'{said.details}; seen as this user, not as the '
                            f'user of nova-compute', said.remedy)
    return said


@GROUP.check('KVM604', 'Connection to Ceph', proof=(
    'With images_type = rbd, Ceph\'s library, in nova-compute\'s Python and '
    'as its user, finds no configuration or no key, or ends the process that '
    'reads the configuration; or Ceph refuses the key. A time-out, or a '
    'monitor that a name server has to name, proves nothing.'))
def _connection(facts: model.HostFacts) -> verdict.Said:
    said = _unused(facts)
    if said is not None:
        return said
    ceph, conf = facts.storage.ceph, errors.clean(facts.options.ceph_conf)
    if _no_answer(facts) is not None or not ceph.step:
        return verdict.skip('Ceph could not be asked (KVM601)')
    client = _client(facts)
    if ceph.step == 'conf' and ceph.error:
        return _configuration(facts)
    if ceph.step == 'connect' and ceph.error:
        if ceph.errno == errno_.ENOENT and not ceph.monitors:
            # The library asks the name server then (mon_dns_srv_name), which
            # may answer in a minute.
            return verdict.warn(
                f'Ceph\'s library finds no monitor, or no key of {client}: '
                f'{conf or "ceph.conf"} has no mon_host, so a name server has '
                f'to name the monitors ({ceph.error})',
                'Replace it with the ceph.conf of the cluster (ceph config '
                'generate-minimal-conf prints one). If SRV records name the '
                'monitors, check that this host can resolve them, and that '
                'the keyring is there.')
        if ceph.errno == errno_.ENOENT:
            return _own_eyes(facts, _weigh(
                facts, f'there is no key of {client} ({ceph.error})',
                f'ceph auth get {client} -o /etc/ceph/ceph.{client}.keyring, '
                f'readable for the user of nova-compute; or '
                f'{_correct_user(facts)}.'))
        # Which of these it is depends on what answers first.
        if ceph.errno == errno_.EOPNOTSUPP or (
                ceph.errno in _REFUSED and not ceph.cephx):
            return _weigh(
                facts, f'Ceph does not let clients authenticate in the way of '
                f'auth_client_required in {conf or "ceph.conf"} '
                f'({ceph.error})',
                'Remove auth_client_required, or set it to cephx.')
        if ceph.errno in _REFUSED:
            return _weigh(
                facts, f'Ceph refuses {client}: Ceph has no such user, the '
                f'keyring of this host has another key of the user or none, '
                f'or the user has no capability for the monitors '
                f'({ceph.error})',
                f'Compare the keyring of this host with ceph auth get '
                f'{client}, or {_correct_user(facts)}. '
                f'{_MON_CAPABILITY}')
        if ceph.errno == errno_.EINVAL:
            # The name server may be well again in a minute.
            return verdict.warn(
                f'Ceph\'s library cannot use mon_host of '
                f'{conf or "ceph.conf"} ({ceph.error})',
                'Correct the addresses. If they are names, check that this '
                'host can resolve them (getent hosts NAME).')
        if ceph.errno == errno_.EIO:
            return verdict.warn(
                f'Ceph\'s library finds no key of {client} in its keyring, or '
                f'cannot read the keyring ({ceph.error})',
                f'ceph auth get {client} -o /etc/ceph/ceph.{client}.keyring')
        return verdict.warn(
            f'no monitor of Ceph accepts {client}: {ceph.error}',
            'Check that the addresses of mon_host in ceph.conf are right, '
            'that this host can reach them, and that ceph -s says HEALTH_OK.')
    return verdict.passed(f'Ceph accepts {client}')


def _configuration(facts: model.HostFacts) -> verdict.Said:
    """Ceph's library could not read ceph.conf."""
    ceph, conf = facts.storage.ceph, errors.clean(facts.options.ceph_conf)
    where = f'[libvirt] images_rbd_ceph_conf = {conf}' if conf else (
        'in no place where Ceph looks for ceph.conf; [libvirt] '
        'images_rbd_ceph_conf is not set')
    if ceph.signal == signal.SIGABRT:
        return _weigh(
            facts, f'Ceph\'s library ends the process that reads '
            f'{conf or "ceph.conf"} ({ceph.error}), and so nova-compute '
            f'too',
            'Remove characters that are not ASCII, also in comments and at '
            'the beginning of the file (byte order mark).')
    if ceph.errno is None:
        return verdict.warn(
            f'whether Ceph\'s library can read {conf or "ceph.conf"} is not '
            f'known: {ceph.error}',
            'Run nova-kvm-ext host check again when this host is less busy.')
    return _own_eyes(facts, _weigh(
        facts, f'Ceph\'s library reads no configuration: {where} '
        f'({ceph.error})',
        'Correct all lines in the file that are neither NAME = VALUE nor '
        '[SECTION], and remove a byte order mark at the beginning of the '
        'file.' if ceph.errno == errno_.EINVAL else
        'Copy ceph.conf of the cluster to that place, readable for the user '
        'of nova-compute.'))


@GROUP.check('KVM605', 'Pool of disks in Ceph', proof=(
    'With images_type = rbd, Ceph says that there is no pool with the name in '
    'images_rbd_pool or in rbd_default_data_pool, does not let Nova\'s user '
    'read the pool, write to it or create images, cannot hold images in the '
    'pool, or has this host on its blocklist. A time-out proves nothing.'))
def _pool(facts: model.HostFacts) -> verdict.Said:
    said = _unused(facts)
    if said is not None:
        return said
    ceph, client = facts.storage.ceph, _client(facts)
    pool = errors.clean(facts.options.rbd_pool)
    asked = ceph.data_pool if ceph.step == 'data' else pool
    if ceph.step not in ('pool', 'read', 'write', 'class', 'data', 'done'):
        return verdict.skip('there is no connection to Ceph (KVM601, KVM604)')
    if ceph.full:
        return verdict.warn(
            f'the pool {pool} is full: guests that write to it wait, and a '
            f'boot hangs',
            'Delete images that are not needed, add OSDs, or raise the quota '
            '(ceph df, ceph osd pool get-quota).')
    if ceph.step == 'done':
        return verdict.passed(
            f'{client} may read and write the pool {pool}' + (
                f', and write to the pool {ceph.data_pool}, which holds the '
                f'data' if ceph.data_pool else ''))
    if ceph.step == 'data' and ceph.errno == errno_.ENOENT:
        return _weigh(
            facts, f'Ceph has no pool {ceph.data_pool}, which is to hold the '
            f'data of disks in the pool {pool} (rbd_default_data_pool)',
            f'Correct rbd_default_data_pool (ceph.conf, ceph config get '
            f'{client}, rbd config pool list {pool}), or create the pool.')
    if ceph.errno == errno_.ENOENT:
        return _weigh(
            facts, f'Ceph has no pool {pool} ([libvirt] images_rbd_pool)',
            f'Correct images_rbd_pool (ceph osd pool ls), or create the pool: '
            f'ceph osd pool create {pool} && rbd pool init {pool}')
    if ceph.step == 'write' and ceph.errno == errno_.EOPNOTSUPP:
        return _weigh(
            facts, f'the pool {pool} cannot hold images, most likely because '
            f'it is erasure coded ({ceph.error})',
            f'Set [libvirt] images_rbd_pool to a replicated pool. With '
            f'rbd_default_data_pool = {pool} in ceph.conf, only the data is '
            f'in the erasure coded pool, which needs allow_ec_overwrites.')
    if ceph.step == 'class' and ceph.errno == errno_.EOPNOTSUPP:
        return _weigh(
            facts, f'the OSDs of the pool {pool} have no class rbd, with '
            f'which images are created ({ceph.error})',
            'Look for libcls_rbd.so in osd_class_dir on the hosts of the '
            'OSDs, and for rbd in osd_class_load_list.')
    if ceph.errno in _REFUSED:
        may = {'pool': 'read', 'read': 'read',
               'class': 'call the class rbd in'}.get(ceph.step, 'write to')
        return _weigh(
            facts, f'Ceph does not let {client} {may} the pool {asked} '
            f'({ceph.error})',
            f'ceph auth caps {client} mon \'profile rbd\' osd \'profile rbd '
            f'pool={asked}\' and, in the same command, all capabilities that '
            f'{client} has already (ceph auth get {client}).')
    if ceph.errno == errno_.ESHUTDOWN:
        return _weigh(
            facts, f'this host is on Ceph\'s blocklist and can neither read '
            f'nor write ({ceph.error})',
            'ceph osd blocklist ls shows the blocklist. If no operator fenced '
            'this host: ceph osd blocklist rm ADDRESS.')
    return verdict.warn(
        f'the pool {asked} does not answer: {ceph.error}',
        f'Look with ceph -s and ceph osd tree for OSDs that are down or a '
        f'full pool. If OSDs are well, check that {client} has a capability '
        f'for OSDs (ceph auth get {client}): Ceph 18.2 does not answer a user '
        f'without one.')
