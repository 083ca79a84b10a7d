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

"""Reads whether guests can have disks in Ceph.

Returns frozen data; makes no decision. There are three sources: the Python of
nova-compute, which has Ceph's library and its user's keys; QEMU; and libvirt,
which has the secret. Ceph may hang, so this process never calls Ceph: a
process that does not answer within :data:`SECONDS` is killed.
"""

import base64
import json
import re
import subprocess
from typing import Any

from nova_kvm_ext import errors
from nova_kvm_ext.host import nova_python
from nova_kvm_ext.host import options
from nova_kvm_ext.host import storage_model

ANSWER_SECONDS = 5
"""Seconds that Ceph's library waits for a monitor, and for an OSD. The limit
that Nova gives it, [libvirt] rbd_connect_timeout, has no effect: seen with
Ceph 16.2.15, which waits for a monitor for 300 s (client_mount_timeout)."""

SECONDS = 25
"""Seconds for all that the Python of nova-compute is asked."""

_QEMU_SECONDS = 10
_OPTION = re.compile(r'^\S+: -blockdev \S+: ', re.MULTILINE)

# virErrorNumber VIR_ERR_NO_SECRET
_NO_SECRET = 66

# virErrorNumber VIR_ERR_INVALID_ARG, which virSecretLookupByUUIDString() has
# for what is not a UUID.
_INVALID = 8

# virSecretUsageType, without NONE and CEPH. libvirt refuses these for a disk
# in Ceph ("is of type 'volume' not expected 'ceph' type").
_OTHER_USES = {1: 'volume', 3: 'iscsi', 4: 'tls', 5: 'vtpm'}

# Each step is said before it is taken: the last line of one that was killed
# tells where it hung. The errors of Ceph's library have an errno. os._exit,
# because threads of a library that waits for Ceph would be waited for.
_QUESTION = """
import errno, json, os, resource, shutil, sys, uuid
sys.path[:] = [path for path in sys.path if path]
asked = json.load(sys.stdin)
# Ceph's library may end this process, which is a finding and no crash.
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def say(**found):
    print(json.dumps(found), flush=True)

def failed(error):
    return {'error': str(error) or type(error).__name__,
            'errno': getattr(error, 'errno', None)}

modules = {}
for name in ('rados', 'rbd'):
    try:
        __import__(name)
        modules[name] = ''
    except Exception as e:
        modules[name] = str(e) or type(e).__name__
say(modules=modules, programs={
    name: shutil.which(name) for name in ('ceph', 'rbd')})
if any(modules.values()):
    os._exit(0)
import rados

def cluster(**more):
    found = rados.Rados(rados_id=asked['user'], conffile=asked['conf'])
    for name in ('client_mount_timeout', 'rados_mon_op_timeout',
                 'rados_osd_op_timeout'):
        found.conf_set(name, str(asked['seconds']))
    for name, value in more.items():
        found.conf_set(name, value)
    return found

try:
    say(step='conf')
    ceph = cluster()
    say(step='connect', monitors=bool(ceph.conf_get('mon_host')),
        # A library that does not tell proves nothing.
        cephx='cephx' in (ceph.conf_get('auth_client_required') or 'cephx'))
    ceph.connect()
    say(step='pool')
    pool = ceph.open_ioctx(asked['pool'])
    full = False
    # Not every user may ask for it.
    try:
        _, out, _ = ceph.mon_command(json.dumps({
            'prefix': 'health', 'detail': 'detail', 'format': 'json'}), b'')
        found = json.loads(out)['checks'].get('POOL_FULL', {'detail': []})
        name = "'%s'" % asked['pool']
        full = any(name in one['message'] for one in found['detail'])
        say(full=full)
    except Exception:
        pass
    say(step='read')
    try:
        # The list of the pool's images. An empty pool has none.
        pool.stat('rbd_directory')
    except rados.ObjectNotFound:
        pass
    # A write to a full pool waits. No object has the name of what is tried to
    # be changed here; Ceph says first whether the user may change it.
    name = 'rbd_data.nova-kvm-ext.' + uuid.uuid4().hex
    if not full:
        say(step='write')
        try:
            # An erasure coded pool has no omap, in which images are listed.
            with rados.WriteOpCtx() as operation:
                pool.remove_omap_keys(operation, ('none',))
                pool.operate_write_op(operation, name)
        except rados.ObjectNotFound:
            pass
        say(step='class')
        try:
            # The class of the OSDs with which images are created. Without the
            # name of an image it does nothing, and says so (EINVAL).
            pool.execute(name, 'rbd', 'dir_remove_image', b'')
        except rados.Error as e:
            if e.errno in (errno.EACCES, errno.EOPNOTSUPP, errno.EPERM,
                           errno.ESHUTDOWN, errno.ETIMEDOUT):
                raise
    # What a disk holds is in another pool where the pool, or else the client,
    # says so: an erasure coded pool can hold data alone.
    holds = ceph.conf_get('rbd_default_data_pool')
    try:
        import rbd
        holds = rbd.RBD().config_get(pool, 'rbd_default_data_pool')
    except Exception:
        # rbd may be missing, or too old to tell. The client's option counts.
        pass
    if holds and holds != asked['pool'] and not full:
        say(step='data', data_pool=holds)
        data = ceph.open_ioctx(holds)
        try:
            data.remove_object(name)
        except rados.ObjectNotFound:
            pass
    say(step='done')
except Exception as e:
    say(**failed(e))
if asked['key']:
    try:
        cluster(key=asked['key']).connect()
        say(key={'error': '', 'errno': None})
    except Exception as e:
        say(key=failed(e))
os._exit(0)
"""


def read(wanted: options.HostOptions, connection: Any,
         python: nova_python.Python, emulator: str | None,
         unasked: str = '') -> storage_model.StorageFacts:
    """Check what disks in Ceph need. Nothing, where nova.conf has no use.

    :param connection: libvirt.virConnect, a proxy of one, or None
    :param python: of nova-compute
    :param emulator: QEMU's program, as libvirt in this file system names it;
        None where there is none
    :param unasked: why QEMU is not asked, or ''
    """
    if not wanted.ceph:
        return storage_model.StorageFacts()
    secret, key = _read_secret(wanted.rbd_secret, connection)
    ceph = (_read_ceph(wanted, python, key) if wanted.ceph_disks else
            storage_model.CephFacts())
    driver, said = ((None, unasked or 'there is no QEMU here')
                    if unasked or emulator is None else _ask_qemu(emulator))
    return storage_model.StorageFacts(ceph, secret, driver, said)


def _read_secret(uuid: str, connection: Any
                 ) -> tuple[storage_model.SecretFacts, str]:
    """A secret, and its value as Ceph writes keys ('' where not known)."""
    if not uuid or connection is None:
        return storage_model.SecretFacts(), ''
    there: bool | None = None
    usage = ''
    try:
        secret = connection.secretLookupByUUIDString(uuid)
        there = True
        usage = _OTHER_USES.get(secret.usageType(), '')
        value = secret.value()
    except Exception as e:
        # libvirt's own, or Nova's where its proxy has lost the connection. A
        # secret that is private shows nobody its value.
        code = errors.libvirt_error_code(e)
        gone = code == _NO_SECRET
        return storage_model.SecretFacts(
            there if not gone else bool(there),
            False if gone and there else None, errors.clean(e),
            not there and code == _INVALID, usage), ''
    return (storage_model.SecretFacts(True, bool(value), usage=usage),
            base64.b64encode(value or b'').decode())


def _ask_qemu(emulator: str) -> tuple[bool | None, str]:
    """Whether QEMU has the driver rbd.

    It is told to open an image with a configuration that does not exist: a
    QEMU that has the driver fails over that before it asks Ceph anything.
    """
    try:
        done = subprocess.run(
            [emulator, '-machine', 'none', '-nodefaults', '-display', 'none',
             '-blockdev', 'driver=rbd,node-name=probe,pool=none,image=none,'
             'conf=/nonexistent/ceph.conf'],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors='replace', timeout=_QEMU_SECONDS)
    except Exception as e:
        # By name: where eventlet has patched it, its class is another one.
        if isinstance(e, OSError) or type(e).__name__ == 'TimeoutExpired':
            return None, errors.clean(e)
        raise
    # QEMU repeats the option, with the file's name, before what it says of it.
    told = _OPTION.sub('', done.stderr)
    said = errors.clean(told)
    # A QEMU may be built to allow some drivers only (RHEL's is).
    if ("Unknown driver 'rbd'" in told or
            "Driver 'rbd' is not whitelisted" in told):
        return False, said
    if '/nonexistent/ceph.conf' in told:
        return True, ''
    return None, said or f'exit code {done.returncode}'


def _read_ceph(wanted: options.HostOptions, python: nova_python.Python,
               key: str) -> storage_model.CephFacts:
    """What nova-compute's Python finds of Ceph, as its user."""
    name = errors.clean(python.name)
    if python.unknown:
        return storage_model.CephFacts(
            True, name, errors.clean(python.unknown), python.elsewhere)
    answers, why, signal = python.ask(_QUESTION, SECONDS, json.dumps({
        'user': wanted.rbd_user or None, 'conf': wanted.ceph_conf,
        'pool': wanted.rbd_pool, 'seconds': ANSWER_SECONDS, 'key': key}))
    said: dict[str, Any] = {}
    for answer in answers:
        if isinstance(answer, dict):
            said |= answer
    modules, programs = said.get('modules'), said.get('programs')
    if not isinstance(modules, dict) or not isinstance(programs, dict):
        return storage_model.CephFacts(True, name, why or 'gives no answer')
    step = str(said.get('step', ''))
    tried = said.get('key')
    return storage_model.CephFacts(
        True, name, modules={str(module): errors.clean(error)
                             for module, error in modules.items()},
        programs={str(program): path and errors.clean(path)
                  for program, path in programs.items()},
        step=step,
        error=errors.clean(said.get('error') or (
            '' if step in ('', 'done') else why or 'no answer')),
        errno=_number(said.get('errno')), signal=signal,
        monitors=said.get('monitors') is not False,
        cephx=said.get('cephx') is not False,
        full=said.get('full') is True,
        data_pool=errors.clean(said.get('data_pool') or ''),
        key_error=errors.clean(tried.get('error', ''))
        if isinstance(tried, dict) else None,
        key_errno=_number(tried.get('errno'))
        if isinstance(tried, dict) else None)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None
