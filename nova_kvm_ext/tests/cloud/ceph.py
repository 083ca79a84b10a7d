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

"""A Ceph of one monitor, one manager and one OSD, for the cloud.

Each OpenStack service has a user and a pool of its own, as Ceph's guide for
OpenStack has it. The OSD keeps its data in memory: it is up in a second, and
nothing outlives the cloud. A pool has one copy of each object.

It knows what to write and to run; :mod:`deploy` runs it.
"""

import base64
from collections.abc import Mapping
import json
import os
import pathlib
import struct
import textwrap
import time
from typing import Any

from nova_kvm_ext.tests.cloud import sandbox

CONF = '/etc/ceph/ceph.conf'
POOLS = {'glance': 'images', 'nova': 'vms', 'cinder': 'volumes'}
"""The pool of each service."""

CAPABILITIES = {
    'glance': {'mon': 'profile rbd', 'osd': 'profile rbd pool=images',
               'mgr': 'profile rbd pool=images'},
    # It writes snapshots to the pool of images.
    'nova': {'mon': 'profile rbd',
             'osd': 'profile rbd pool=vms, profile rbd pool=images',
             'mgr': 'profile rbd pool=vms'},
    'cinder': {'mon': 'profile rbd',
               'osd': 'profile rbd pool=volumes, '
                      'profile rbd-read-only pool=images',
               'mgr': 'profile rbd pool=volumes'},
}
"""What each service's user may do."""

SECRETS = {'nova': '00000000-0000-4000-8000-0000000ce001',
           'cinder': '00000000-0000-4000-8000-0000000ce002'}
"""UUIDs of libvirt's secrets, by the user whose key they are."""

SERVICES = ('ceph-mon', 'ceph-mgr', 'ceph-osd')

_ADDRESS = sandbox.ADDRESSES[sandbox.COMPUTES[0]]
_PORT = 6789
_FSID = '00000000-0000-4000-8000-0000000ce000'
_OSD = '00000000-0000-4000-8000-0000000ce0d0'
_PGS = 8
_ALL = {'mon': 'allow *', 'osd': 'allow *', 'mgr': 'allow *'}
# All that Nova has for disks, and Cinder for volumes.
_GIB = 12


def new_key() -> str:
    """A key as ceph-authtool makes one: type, time, length and the secret."""
    return base64.b64encode(struct.pack(
        '<hiih', 1, int(time.time()), 0, 16) + os.urandom(16)).decode()


def write(state: pathlib.Path) -> None:
    """Write all files: Ceph's own, and those of clients on each compute."""
    top = state / 'ceph'
    for name in ('mon', 'mgr', 'osd'):
        (top / name).mkdir(parents=True)
    keys = {name: new_key() for name in (
        'mon.', 'mgr.x', 'osd.0', 'client.admin',
        *(f'client.{user}' for user in CAPABILITIES))}
    capabilities: dict[str, Mapping[str, str]] = {
        'mon.': {'mon': 'allow *'},
        'mgr.x': {'mon': 'allow profile mgr', 'osd': 'allow *',
                  'mds': 'allow *'},
        'osd.0': {'mon': 'allow profile osd', 'mgr': 'allow profile osd',
                  'osd': 'allow *'},
        'client.admin': _ALL,
        **{f'client.{user}': what for user, what in CAPABILITIES.items()}}
    (top / 'keyring').write_text('\n'.join(
        _keyring(name, keys[name], capabilities[name]) for name in keys))
    for compute in sandbox.COMPUTES:
        etc = state / compute / 'ceph-etc'
        etc.mkdir(parents=True, exist_ok=True)
        (etc / 'ceph.conf').write_text(_conf(state))
        secrets = state / compute / 'libvirt-etc' / 'secrets'
        secrets.mkdir(mode=0o700, parents=True)
        for name in ('admin', *CAPABILITIES):
            key = keys[f'client.{name}']
            (etc / f'ceph.client.{name}.keyring').write_text(
                _keyring(f'client.{name}', key))
            if name in SECRETS:
                write_secret(secrets, name, key)


def write_secret(directory: pathlib.Path, user: str, key: str) -> None:
    """Write a user's key where libvirtd reads it when it starts."""
    one = SECRETS[user]
    (directory / f'{one}.xml').write_text(
        f"<secret ephemeral='no' private='no'><uuid>{one}</uuid>"
        f"<usage type='ceph'><name>client.{user}</name></usage></secret>\n")
    value = directory / f'{one}.base64'
    value.touch(0o600)
    value.write_text(key)


def commands(state: pathlib.Path, name: str) -> list[list[str]]:
    """What makes a daemon's data, before its first start."""
    top = state / 'ceph'
    if name == 'ceph-mon':
        return [
            ['monmaptool', '--create', '--fsid', _FSID, '--addv', 'a',
             f'[v2:{_ADDRESS}:3300,v1:{_ADDRESS}:{_PORT}]',
             f'{top}/monmap'],
            ['ceph-mon', '--mkfs', '-i', 'a', '--monmap', f'{top}/monmap',
             '--keyring', f'{top}/keyring']]
    if name == 'ceph-osd':
        return [['ceph-osd', '--mkfs', '-i', '0', '--osd-uuid', _OSD]]
    return []


def daemon(name: str) -> list[str]:
    """The command of a daemon that stays in the foreground."""
    which = {'ceph-mon': 'a', 'ceph-mgr': 'x', 'ceph-osd': '0'}[name]
    return [name, '--foreground', '--id', which]


class Cluster:
    """The cluster as its administrator sees it, from inside the cloud."""

    def __init__(self) -> None:
        # The distribution's: there is none on PyPI.
        import rados
        self._rados = rados.Rados(conffile=CONF, name='client.admin')
        self._rados.connect(timeout=60)

    def __enter__(self) -> 'Cluster':
        return self

    def __exit__(self, *_: object) -> None:
        self._rados.shutdown()

    def tell(self, prefix: str, **arguments: Any) -> Any:
        """Give the monitor a command; returns the JSON of its answer.

        :param prefix: the command's words
        :raises RuntimeError: it is refused; str() says why
        """
        code, answer, said = self._rados.mon_command(json.dumps(
            {'prefix': prefix, 'format': 'json', **arguments}), b'',
            timeout=60)
        if code:
            raise RuntimeError(f'ceph {prefix} {arguments}: {code} {said}')
        return json.loads(answer) if answer.strip() else None

    def add_osd(self) -> None:
        """Give the OSD its number, before it is made."""
        self.tell('osd create', uuid=_OSD, id=0)

    def make_pools(self) -> None:
        """Make the pools, for RBD."""
        for pool in POOLS.values():
            self.tell('osd pool create', pool=pool, pg_num=_PGS,
                      pgp_num=_PGS)
            self.tell('osd pool application enable', pool=pool, app='rbd')

    def healthy(self) -> bool:
        """Whether the OSD is up, and the manager tells of space."""
        found = self.tell('status')
        return (found['osdmap']['num_up_osds'] == 1 and
                found['mgrmap']['available'] and
                found['pgmap']['bytes_total'] > 0 and
                [state['state_name'] for state in
                 found['pgmap'].get('pgs_by_state', ())] == ['active+clean'])

    def allow(self, user: str, capabilities: Mapping[str, str]) -> None:
        """Say what a service's user may do, all of it."""
        self.tell('auth caps', entity=f'client.{user}', caps=[
            word for pair in capabilities.items() for word in pair])


def _keyring(name: str, key: str, capabilities: Mapping[str, str] = {}
             ) -> str:
    return '\n'.join([
        f'[{name}]', f'\tkey = {key}',
        *(f'\tcaps {what} = "{text}"'
          for what, text in capabilities.items()), ''])


def _conf(state: pathlib.Path) -> str:
    top = state / 'ceph'
    return textwrap.dedent(f'''\
        [global]
        fsid = {_FSID}
        mon host = [v2:{_ADDRESS}:3300,v1:{_ADDRESS}:{_PORT}]
        public network = {_ADDRESS}/24
        log to file = false
        log to stderr = true
        err to stderr = true
        # Nothing of the machine's own.
        run dir = /run/ceph
        crash dir = {top}
        osd pool default size = 1
        osd pool default min size = 1
        osd crush chooseleaf type = 0
        osd pool default pg autoscale mode = off
        # Sooner than most would want it.
        paxos propose interval = 0.05
        mgr stats period = 1

        # A client says what it has to say by its exit and its exceptions.
        [client]
        log to stderr = false

        [mon]
        mon data = {top}/mon
        mon allow pool size one = true
        auth allow insecure global id reclaim = false
        # The disk of a machine that tests may be full of other things.
        mon data avail warn = 1
        mon data avail crit = 1
        mon cluster log to file = false
        mon warn on pool no redundancy = false

        [mgr]
        mgr data = {top}/mgr
        keyring = {top}/keyring
        mgr initial modules =

        [osd]
        osd data = {top}/osd
        keyring = {top}/keyring
        osd objectstore = memstore
        memstore device bytes = {_GIB * 2 ** 30}
        # What is in memory outlives a stop only if it is written down then.
        osd fast shutdown = false
        osd mon report interval = 1
        osd crush initial weight = 1
        ''')
