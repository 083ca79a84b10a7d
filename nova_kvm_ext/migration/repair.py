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

"""The steps that bring back a guest that moved while no nova-compute ran.

Pure: takes facts, returns steps. Each step says whether it is needed, and what
proves that; a step without this proof is left out.

The guest is moved back to the host where Nova has it, because the data that
the end of a live migration needs (volumes, ports, allocations) was lost with
the nova-compute that had it.
"""

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import enum

from nova_kvm_ext import errors

LIVE = 'live-migration'


class Name(enum.Enum):
    """The steps, in their order."""

    MOVE = 'move the guest back'
    FILES = 'remove its files here'
    ALLOCATIONS = 'give back allocations'
    BINDINGS = 'delete port bindings'
    VOLUMES = 'attach volumes to its host'
    STATE = 'reset the state of the server'


@dataclasses.dataclass(frozen=True)
class Step:
    """A step.

    :ivar needed: True where it is to be done, and that is proved; False where
        there is nothing to do; None where that could not be told
    :ivar why: what proves it, or what is missing, with no full stop
    :ivar by_hand: what does the same by hand
    """

    name: Name
    needed: bool | None
    why: str
    by_hand: str = ''


@dataclasses.dataclass(frozen=True)
class Migration:
    """A live migration in Nova's records."""

    uuid: str
    source: str
    destination: str
    status: str


@dataclasses.dataclass(frozen=True)
class Server:
    """What Nova says of the server.

    :ivar host: on which Nova has it
    :ivar task: what Nova is doing with it, None for nothing
    :ivar migration: the newest live migration, None if there was none
    :ivar fault: why it is in the state error, ''
    :ivar volumes: ids of the volumes that it has
    """

    uuid: str
    host: str
    state: str
    task: str | None = None
    migration: Migration | None = None
    fault: str = ''
    volumes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Allocations:
    """Which hosts Placement has resources allocated on.

    :ivar instance: for the server
    :ivar migration: for the migration
    :ivar unknown: why they could not be read
    """

    instance: frozenset[str] = frozenset()
    migration: frozenset[str] = frozenset()
    unknown: str = ''


@dataclasses.dataclass(frozen=True)
class Port:
    """A port of the server.

    :ivar host: to which it is bound
    :ivar others: status of its other bindings, by host
    """

    id: str
    host: str
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Files:
    """The guest's directory in instances_path of this host.

    :ivar path: '' where there is none
    :ivar local: whether the file system is local to this host; None where that
        is not known
    :ivar in_use: disks in it that a QEMU has open, or may have
    """

    path: str = ''
    local: bool | None = None
    in_use: Collection[str] = ()


def refusal(server: Server, here: str, runs_here: bool | None,
            busy: bool = False, hangs: bool = False, torn: bool = False
            ) -> str:
    """Why nothing is done at all, '' where the guest is to be brought back.

    :param here: this host's name in Nova
    :param runs_here: whether this host's libvirt runs the guest
    :param busy: whether libvirt has a job with it
    :param hangs: whether its QEMU does not answer libvirt
    :param torn: whether its post-copy migration has failed
    """
    if server.host == here:
        return ('Nova has the server on this host, so there is nothing to '
                'bring back')
    if not server.host:
        return 'Nova has the server on no host'
    if server.task is not None:
        return (f'Nova has a task with the server '
                f'({errors.clean(server.task, 40)})')
    left = server.migration
    if left is None or left.source != server.host or left.destination != here:
        return (f'the last live migration of the server was not from '
                f'{errors.clean(server.host, 80)}, where Nova has the server, '
                f'to this host')
    # Nova has no task with the server. That ends "running (post-copy)" too:
    # a nova-compute that starts (31 to 34) looks for "running" alone.
    if left.status in ('running', 'preparing', 'pre-migrating',
                       'post-migrating', 'accepted', 'queued'):
        return ('Nova has not ended the live migration of the server '
                f'({errors.clean(left.status, 40)}). Is nova-compute on '
                f'{errors.clean(server.host, 80)} up?')
    if runs_here and torn:
        host = errors.clean(server.host, 80)
        return ('the post-copy migration of the guest has failed, and each '
                f'host has a part of its memory. Do not end it on {host}. '
                'When the hosts reach each other, continue the migration on '
                f'{host}: "virsh migrate --live --p2p --persistent '
                '--undefinesource --postcopy --postcopy-resume '
                f'{server.uuid} URI-OF-THIS-HOST", and run this command '
                f'again. Where the guest on {host} is gone, end the guest '
                f'here, "virsh destroy {server.uuid}": its memory is lost')
    if runs_here and busy:
        return 'libvirt has another job with the guest'
    if runs_here and hangs:
        return ('the QEMU of the guest does not answer libvirt. Find out why, '
                'and run this command again')
    return ''


def move(server: Server, runs_here: bool | None, runs_there: bool | None,
         why: str, by_hand: str, shut_off_here: bool = False) -> Step:
    """The guest itself.

    :param runs_there: whether the libvirt runs it where Nova has it
    :param why: what kept us from knowing that
    :param shut_off_here: whether this host's libvirt has the guest shut off
    """
    host = errors.clean(server.host, 80)
    if runs_here and runs_there:
        return Step(Name.MOVE, None, f'it runs here and on {host}: two guests '
                    'write to different disks. Find out which one is the '
                    'right one, and end the other')
    if runs_here:
        seen = ('where it does not run' if runs_there is False else
                f'whose libvirt could not be asked ({why}), but refuses a '
                'guest that runs there')
        return Step(Name.MOVE, True, f'it runs here, and Nova has it on '
                    f'{host}, {seen}', by_hand)
    if runs_there:
        return Step(Name.MOVE, False, f'it runs on {host} already')
    if runs_there is None:
        return Step(Name.MOVE, None, f'it does not run here, and whether it '
                    f'runs on {host} is not known: {why}')
    if shut_off_here:
        return Step(Name.MOVE, None, 'it is shut off here, and what it wrote '
                    'last may be on the disks of this host alone. Start it '
                    'here, and run this command again',
                    f'virsh start {server.uuid}')
    return Step(Name.MOVE, None, f'it runs neither here nor on {host}: '
                f'"openstack server reboot --hard" starts it there')


def files(found: Files, runs_here: bool | None, runs_there: bool | None
          ) -> Step:
    """What is left of the guest's disks on this host."""
    by_hand = f'rm -r {found.path}'
    if not found.path:
        return Step(Name.FILES, False, 'there are none')
    if runs_here is not False or not runs_there:
        return Step(Name.FILES, None, 'it is not proved that the guest runs '
                    'on its host and not here', by_hand)
    if found.local is not True:
        return Step(Name.FILES, False if found.local is False else None,
                    'the file system is shared with other hosts'
                    if found.local is False else
                    'whether other hosts share the file system is not known',
                    '' if found.local is False else by_hand)
    if found.in_use:
        return Step(Name.FILES, None, f'{", ".join(found.in_use)}: in use, or '
                    f'that cannot be told', by_hand)
    return Step(Name.FILES, True, 'the guest runs on its own host, the file '
                'system is local to this host, and nothing has the disks open',
                by_hand)


def allocations(server: Server, here: str, found: Allocations,
                runs_there: bool | None) -> Step:
    """What Placement keeps for the migration."""
    by_hand = (f'nova-manage placement heal_allocations --instance '
               f'{server.uuid} --force; openstack resource provider '
               f'allocation delete '
               f'{server.migration.uuid if server.migration else "MIGRATION"}')
    if found.unknown:
        return Step(Name.ALLOCATIONS, None, found.unknown, by_hand)
    if found.instance == {server.host} and not found.migration:
        return Step(Name.ALLOCATIONS, False, 'they are as they should be')
    if not runs_there:
        return Step(Name.ALLOCATIONS, None, f'it is not proved that the guest '
                    f'runs on {server.host}', by_hand)
    if found.instance == {here} and found.migration == {server.host}:
        return Step(Name.ALLOCATIONS, True, f'Placement has the server on '
                    f'{here}, and the migration on {server.host}', by_hand)
    return Step(
        Name.ALLOCATIONS, None,
        f'Placement has the server on {_some(found.instance)} and the '
        f'migration on {_some(found.migration)}, which is not what a '
        f'migration that was cut leaves', by_hand)


def bindings(server: Server, here: str, ports: Collection[Port] | None,
             runs_there: bool | None, unknown: str = ''
             ) -> tuple[Step, tuple[str, ...], tuple[str, ...]]:
    """The second bindings of ports.

    Nova binds the ports to the destination when the guest is stopped on the
    source: at the end, or at the switch to post-copy.

    :param ports: None where they could not be read, for the reason
        ``unknown``
    :returns: the step, the ports to bind to the server's host, and the ports
        whose binding to this host is to go
    """
    if ports is None:
        return Step(Name.BINDINGS, None, unknown), (), ()
    moved = [port for port in ports if port.host == here]
    extra = [port for port in ports if here in port.others]
    if not moved and not extra:
        return Step(Name.BINDINGS, False, 'no port has a second one'), (), ()
    odd = [port.id for port in extra
           if port.host != server.host or port.others[here] == 'ACTIVE']
    if odd:
        return Step(Name.BINDINGS, None, f'ports {", ".join(odd)}: bound to '
                    f'another host than {server.host}'), (), ()
    alone = [port.id for port in moved if server.host not in port.others]
    if alone:
        return Step(Name.BINDINGS, None, f'ports {", ".join(alone)}: bound to '
                    f'{here}, and not to {server.host}'), (), ()
    by_hand = f'DELETE /v2.0/ports/PORT/bindings/{here} of Neutron'
    if moved:
        by_hand = (f'PUT /v2.0/ports/PORT/bindings/{server.host}/activate, '
                   f'{by_hand}')
        if not runs_there:
            return Step(
                Name.BINDINGS, None, f'{len(moved)} port(s) are bound to '
                f'{here}, and it is not proved that the guest runs on '
                f'{server.host}', by_hand), (), ()
    said = []
    if moved:
        said.append(f'{len(moved)} port(s) are bound to {here}, and have an '
                    f'inactive binding to {server.host}')
    if extra:
        said.append(f'{len(extra)} port(s) bound to {server.host} have an '
                    f'inactive binding to {here}')
    return (Step(Name.BINDINGS, True, '; '.join(said), by_hand),
            tuple(port.id for port in moved),
            tuple(port.id for port in (*moved, *extra)))


def volumes(server: Server, here: str, hosts: Mapping[str, str] | None,
            unknown: str = '') -> Step:
    """The attachments of the server's volumes, which are only looked at.

    The destination replaced each by one of its own before the guest moved,
    and Nova uses that at the next start. Only a server that is stopped can
    get another one.

    :param hosts: to which the attachment that Nova uses is, by volume; ''
        where Cinder does not say. None for not known, for the reason
        ``unknown``
    """
    moved = [volume for volume, host in (hosts or {}).items() if host == here]
    by_hand = (f'on {server.host}: nova-manage volume_attachment '
               f'get_connector --json > connector.json; openstack server stop '
               f'{server.uuid}; nova-manage volume_attachment refresh '
               f'{server.uuid} VOLUME connector.json, for '
               f'{", ".join(moved or server.volumes)}')
    if hosts is None:
        return Step(Name.VOLUMES, None, unknown, by_hand)
    if moved:
        return Step(Name.VOLUMES, None, f'{len(moved)} volume(s) are attached '
                    f'to {here} in Cinder since the migration began. The '
                    f'guest runs with them, but its next start may fail',
                    by_hand)
    if all(host == server.host for host in hosts.values()):
        return Step(Name.VOLUMES, False,
                    f'they are attached to {server.host}')
    return Step(Name.VOLUMES, None, 'Cinder does not say to which host they '
                'are attached', by_hand)


def state(server: Server, runs_there: bool | None) -> Step:
    """The state of a server whose start was refused."""
    by_hand = f'openstack server set --state active {server.uuid}'
    if server.state != 'error':
        return Step(
            Name.STATE, False, f'it is {errors.clean(server.state, 20)}')
    if runs_there:
        return Step(Name.STATE, True, f'it is error, and the guest runs on '
                    f'{errors.clean(server.host, 80)}', by_hand)
    return Step(Name.STATE, None, 'it is not proved that the guest runs on '
                'its host', by_hand)


def _some(hosts: Collection[str]) -> str:
    return ', '.join(sorted(hosts)) or 'no host'
