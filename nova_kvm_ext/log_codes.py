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

"""The codes of our log messages; the documentation is generated from them.

Each message of level WARNING or above begins with a code of this table. Codes
are part of this package's interface: a code is never given to another
message, and one that is no longer used is not used again.

1xx start of the service, 2xx CPU, 3xx vhost-net, 4xx guest agent and
snapshots, 5xx libvirt and the host, 6xx images, 7xx migration, 8xx storage,
9xx this service itself. ``KVM101`` and so on, without the L, are checks of
``nova-kvm-ext host check``.
"""

import dataclasses
import enum


class Who(enum.Enum):
    """Who can do something about a message."""

    OPERATOR = 'operator'       # of this host or of the cloud
    IMAGE_OWNER = 'owner of the image'
    TENANT = 'owner of the instance'
    ADMINISTRATOR = 'administrator of flavors'
    DEVELOPER = 'developer of this driver'


@dataclasses.dataclass(frozen=True)
class LogMessage:
    """A message in the log of nova-compute.

    :param code: what its lines begin with
    :param meaning: what has happened, in a sentence or two
    :param remedy: what to do, in the imperative
    :param who: who can do that, the one concerned first
    :param each_request: two requests of users are two things, so that both
        are said; other messages are said once for the same thing
    """

    code: str
    meaning: str
    remedy: str
    who: tuple[Who, ...]
    each_request: bool = False


_OPERATOR = (Who.OPERATOR,)

TABLE: tuple[LogMessage, ...] = (
    LogMessage(
        'KVML101',
        'nova-compute does not start: an option is wrong, or this host '
        'cannot run guests as nova.conf asks.',
        'Do what the line says; it names the option and the value, or the '
        'host check and its remedy.',
        _OPERATOR),

    LogMessage(
        'KVML201',
        'libvirt\'s domain capabilities have an entry that this driver does '
        'not understand. The driver ignores this entry.',
        'Nothing, if guests get the CPU that you want. Report the line, with '
        'the versions of libvirt and QEMU.',
        (Who.DEVELOPER,)),
    LogMessage(
        'KVML202',
        'The CPU that nova.conf asks for is used, but something about it is '
        'not as you may expect, or is not known.',
        'Read the line; nova-kvm-ext cpu show prints the whole CPU.',
        _OPERATOR),
    LogMessage(
        'KVML203',
        'libvirt does not tell which CPUs guests can have. No CPU is refused '
        'in advance, so a guest may fail when it starts.',
        'Run nova-kvm-ext host check; repair what libvirt complains about and '
        'restart nova-compute.',
        _OPERATOR),
    LogMessage(
        'KVML204',
        'A flavor or an image has a property of this driver that does not '
        'exist. It has no effect.',
        'Correct the name of the extra spec or of the image property.',
        (Who.ADMINISTRATOR, Who.IMAGE_OWNER)),
    LogMessage(
        'KVML205',
        'The CPU of a running guest cannot be read, so it is not saved for a '
        'later live migration or hard reboot.',
        'See why libvirt did not answer. The guest keeps running; its CPU is '
        'read again when it next starts.',
        _OPERATOR),
    LogMessage(
        'KVML206',
        'The CPU of a guest could not be saved in Nova\'s database.',
        'See the traceback: most often the database or nova-conductor does '
        'not answer. The CPU is saved when the guest next starts.',
        _OPERATOR),
    LogMessage(
        'KVML207',
        'A guest was started with another CPU than before.',
        'Nothing, if that is meant (a new cpu_mode, another QEMU). Otherwise '
        'see [kvm_ext] keep_guest_cpu.',
        _OPERATOR),
    LogMessage(
        'KVML208',
        '[kvm_ext] keep_guest_cpu is set and this host cannot give a guest '
        'the CPU that it had. It gets the CPU that nova.conf asks for now.',
        'Move the guest to a host that can give that CPU (nova-kvm-ext fleet '
        'fit), or accept the new CPU.',
        _OPERATOR),
    LogMessage(
        'KVML209',
        'A live migration to this host is refused: the host cannot give the '
        'guest the CPU that it has.',
        'Choose another host (nova-kvm-ext fleet drain names them), or the '
        'same CPU for all hosts (nova-kvm-ext fleet baseline).',
        _OPERATOR),
    LogMessage(
        'KVML210',
        'A guest\'s CPU can be given here, but something about it is not '
        'known.',
        'Read the line. The start of the guest, or the migration, will show '
        'whether it works.',
        _OPERATOR),
    LogMessage(
        'KVML211',
        'Whether this host can give a guest the CPU that it has is not '
        'known. Nothing is refused.',
        'Nothing, if the guest starts or the migration succeeds. Otherwise '
        'choose another host.',
        _OPERATOR),

    LogMessage(
        'KVML301',
        '[kvm_ext] vhost_net = require has no effect, because guests are not '
        'of type kvm.',
        'Set [kvm_ext] virt_type = kvm, or vhost_net = prefer.',
        _OPERATOR),
    LogMessage(
        'KVML302',
        'This host cannot do vhost-net, so no guest uses it. Their network '
        'works, but is slower.',
        'Do what the line says; see "vhost-net" in the administration guide.',
        _OPERATOR),
    LogMessage(
        'KVML303',
        'An interface is made without vhost-net, although its kind can use '
        'vhost-net.',
        'Do what the line says, then reboot the guest (hard) or attach the '
        'interface again.',
        _OPERATOR),
    LogMessage(
        'KVML304',
        'Whether the interfaces of a guest use vhost-net cannot be seen. The '
        'guest runs.',
        'Run nova-kvm-ext vhost list as root.',
        _OPERATOR),
    LogMessage(
        'KVML305',
        'The XML of an interface names vhost-net, but the interface does not '
        'use it.',
        'See QEMU\'s log of the guest and nova-kvm-ext vhost list; repair '
        '/dev/vhost-net and reboot the guest (hard).',
        _OPERATOR),
    LogMessage(
        'KVML306',
        'The source of a live migration is not told how many queues each '
        'interface has. The destination uses its own limits.',
        'Nothing, if the migration succeeds. Otherwise set the same '
        '[kvm_ext] and [libvirt] limits of queues on both hosts.',
        _OPERATOR),
    LogMessage(
        'KVML307',
        'The source of a live migration cannot see how many queues each '
        'interface has.',
        'As for KVML306.',
        _OPERATOR),

    LogMessage(
        'KVML401',
        'The image property hw_qemu_guest_agent or os_require_quiesce has a '
        'value that is neither yes nor no. The line says what the guest got.',
        'Set the property to yes or no.',
        (Who.IMAGE_OWNER,)),
    LogMessage(
        'KVML402',
        'A snapshot fails, because the image says os_require_quiesce and the '
        'guest was not quiesced.',
        'Check the guest agent (nova-kvm-ext agent show); repeat the snapshot '
        'when it answers.',
        (Who.TENANT, Who.OPERATOR), each_request=True),
    LogMessage(
        'KVML403',
        'A snapshot is made of a guest that was not quiesced. It is like a '
        'disk after a power failure.',
        'Repeat the snapshot when the guest agent answers (nova-kvm-ext agent '
        'show), if programs in the guest need it.',
        (Who.TENANT, Who.OPERATOR), each_request=True),
    LogMessage(
        'KVML404',
        'A guest was frozen for a snapshot and did not stay frozen until the '
        'snapshot was made.',
        'Do not rely on that snapshot. Repeat it; see what in the guest or on '
        'the host thaws it.',
        (Who.OPERATOR, Who.TENANT), each_request=True),
    LogMessage(
        'KVML405',
        'A guest may be frozen: its agent did not answer when it was told to '
        'thaw. The driver tries again at each periodic update and when '
        'nova-compute starts.',
        'See nova-kvm-ext agent show; if it stays frozen, nova-kvm-ext agent '
        'thaw, then a reboot (hard).',
        (Who.OPERATOR, Who.TENANT)),
    LogMessage(
        'KVML406',
        'A guest was frozen when it migrated here. It is thawed when its '
        'snapshot ends, or after the time that the line says.',
        'Nothing. Do not migrate guests while they are backed up.',
        _OPERATOR),
    LogMessage(
        'KVML407',
        'It could not be recorded that a guest is frozen, so the guest is not '
        'thawed if nova-compute dies.',
        'Check [DEFAULT] state_path: is it full, read-only, of another user?',
        _OPERATOR),
    LogMessage(
        'KVML408',
        'A guest was frozen for a snapshot that did not end, and was told to '
        'thaw.',
        'Do not rely on that snapshot. See why it did not end: storage that '
        'does not answer, or for a volume Nova\'s API or Cinder.',
        _OPERATOR),
    LogMessage(
        'KVML409',
        'Nova did not thaw a guest at once. The driver thaws the guest.',
        'Nothing, unless KVML405 follows.',
        _OPERATOR),
    LogMessage(
        'KVML410',
        'The list of guests that may be frozen cannot be read.',
        'Check [DEFAULT] state_path and its permissions.',
        _OPERATOR),
    LogMessage(
        'KVML411',
        'There are more guests that may be frozen than can be asked in one '
        'periodic update. The rest follows in the next.',
        'See nova-kvm-ext agent list for guests whose agent hangs.',
        _OPERATOR),
    LogMessage(
        'KVML412',
        'The record of a guest that may be frozen cannot be read.',
        'Thaw the guest (nova-kvm-ext agent thaw), then remove the file that '
        'the line names.',
        _OPERATOR),
    LogMessage(
        'KVML413',
        'A guest was left frozen by a snapshot or a program that has ended, '
        'and is thawed now.',
        'Do not rely on a snapshot that was made before.',
        _OPERATOR),
    LogMessage(
        'KVML414',
        'A guest is thawed, but this cannot be recorded. The guest is thawed '
        'once more, which does no harm.',
        'Check [DEFAULT] state_path: is it full, read-only, of another user?',
        _OPERATOR),
    LogMessage(
        'KVML416',
        'After a migration or a suspension the agent of a guest has no time '
        'limit, or the clock of the guest is not set.',
        'See nova-kvm-ext agent show; set the clock in the guest.',
        (Who.OPERATOR, Who.TENANT)),

    LogMessage(
        'KVML501',
        'libvirt, or Ceph\'s library, reported an error that is known. The '
        'line has the cause, the remedy, the name of the error and its own '
        'words.',
        'Do what the line says. "Errors of libvirt" has the error by its '
        'name.',
        _OPERATOR),
    LogMessage(
        'KVML502',
        'The guest that tests KVM was not destroyed. libvirt destroys it '
        'when this connection closes.',
        'Nothing, unless virsh list still shows it later.',
        _OPERATOR),
    LogMessage(
        'KVML510',
        'QEMU of a running guest does not answer libvirt. The service '
        'continues without that answer. With libvirt 9.0 it asks for the '
        'vCPUs of each guest separately until libvirt answers again.',
        'Check the guest that is named: virsh domcontrol shows for how long '
        'its QEMU has not answered. The usual cause is a storage that hangs. '
        'If nothing else helps, virsh destroy ends that QEMU.',
        _OPERATOR),
    LogMessage(
        'KVML511',
        'Guests that ran when nova-compute started have no time limit for '
        'their agents yet, or their CPUs are not kept yet, because libvirt, '
        'Nova\'s database or QEMU of a guest does not answer.',
        'See why it does not; the next periodic update tries it again.',
        _OPERATOR),

    LogMessage(
        'KVML601',
        'qemu-img could not do its work on an image. Nova tries another '
        'host.',
        'Do what the line says.',
        _OPERATOR),
    LogMessage(
        'KVML602',
        'qemu-img was killed while Nova asked it about an image.',
        'Check the load and the memory of this host, and [libvirt] '
        'images_cpu_time_limit and images_address_space_limit.',
        _OPERATOR),
    LogMessage(
        'KVML603',
        'Nova refused an image. This line has the paths of this host that '
        'the tenant is not shown.',
        'See what the line says about the image.',
        (Who.IMAGE_OWNER, Who.OPERATOR)),
    LogMessage(
        'KVML604',
        'An image is refused. The line names the check, the reason and the '
        'remedy.',
        'Do what the line says; nova-kvm-ext image check says the same of '
        'the file.',
        (Who.IMAGE_OWNER,)),
    LogMessage(
        'KVML605',
        'An image was accepted and cannot be converted.',
        'Convert the image before it is uploaded (nova-kvm-ext image '
        'convert).',
        (Who.IMAGE_OWNER, Who.OPERATOR)),

    LogMessage(
        'KVML701',
        'A guest moved to another host while nova-compute was down, and Nova '
        'still has it on this one.',
        'Do not reboot or delete the server. Run nova-kvm-ext guest '
        'repair-migration on '
        'the other host. See "A guest that moved while nova-compute was down" '
        'in the troubleshooting guide.',
        _OPERATOR),
    LogMessage(
        'KVML702',
        'A flavor or an image asks for what is to be done about a live '
        'migration that will not converge, and the policy is not allowed or '
        'does not exist, or the two ask for different policies, or Nova could '
        'not read them. The guest moves anyway.',
        'Correct the extra spec or the property, or allow the policy in '
        '[kvm_ext] migration_stalled_allowed.',
        (Who.ADMINISTRATOR, Who.IMAGE_OWNER, Who.OPERATOR),
        each_request=True),
    LogMessage(
        'KVML703',
        'What libvirt says of a live migration could not be judged. The guest '
        'moves as with LibvirtDriver.',
        'Report the line with its traceback, and the versions of libvirt and '
        'QEMU.',
        (Who.DEVELOPER,), each_request=True),
    LogMessage(
        'KVML704',
        'A live migration will not converge, and post-copy, which is asked '
        'for, is not permitted. Nothing is done.',
        'Set [libvirt] live_migration_permit_post_copy = true on both hosts, '
        'ask for another policy, or complete or abort the migration '
        'yourself.',
        _OPERATOR, each_request=True),
    LogMessage(
        'KVML705',
        'A live migration would not converge, and it was switched to '
        'post-copy, its guest paused, or it was aborted, as [kvm_ext] '
        'migration_stalled, the flavor or the image asks.',
        'Nothing, if you want this. Otherwise see "Live migration" in the '
        'administration guide.',
        (Who.OPERATOR, Who.ADMINISTRATOR), each_request=True),
    LogMessage(
        'KVML721',
        'A start, hard reboot or rescue of a guest is refused, because the '
        'guest runs on another host, to which it was being moved when '
        'nova-compute was killed. A second guest would start from an old '
        'disk.',
        'Run nova-kvm-ext guest repair-migration on the host that the line '
        'names.',
        _OPERATOR),
    LogMessage(
        'KVML722',
        'A guest is started on this host. It was being moved to another one '
        'when nova-compute was killed, and whether the guest runs there could '
        'not be found out.',
        'Check that host with virsh list. If the guest runs there, end the '
        'one here and run nova-kvm-ext guest repair-migration there.',
        _OPERATOR),
    LogMessage(
        'KVML723',
        'A guest is started on this host. A live migration took it to another '
        'host, where it has been shut off since. What it wrote there is on '
        'the disks of that host, unless the hosts share their disks.',
        'If the disks are not shared and the newer ones are needed: stop the '
        'server, run virsh start on the other host, and then nova-kvm-ext '
        'guest repair-migration there.',
        (Who.OPERATOR, Who.ADMINISTRATOR)),

    LogMessage(
        'KVML801',
        'Glance refuses the properties that say whether a snapshot is '
        'quiesced. The snapshot is made without them, or with those that its '
        'image has already.',
        'Allow them in property_protection_file of Glance, or raise '
        'image_property_quota.',
        _OPERATOR),
    LogMessage(
        'KVML811',
        'QEMU paused a guest because the host had no space for one of its '
        'disks. The guest is resumed when there is space, if Nova has it as '
        'running.',
        'Make space where the line says, or move guests to other hosts. See '
        '"Paused guests".',
        _OPERATOR),
    LogMessage(
        'KVML812',
        'QEMU paused a guest because of an I/O error, and nobody resumes the '
        'guest: the error was not missing space, or [kvm_ext] '
        'resume_io_paused is never.',
        'Repair the storage of the disk, then run virsh resume. See "Paused '
        'guests".',
        _OPERATOR),
    LogMessage(
        'KVML813',
        'A guest that was resumed because there seemed to be space was paused '
        'again at once, several times.',
        'Check the storage of the disk: quotas, thin pools and Ceph can be '
        'full while the file system has space. See "Paused guests".',
        _OPERATOR),
    LogMessage(
        'KVML814',
        'There is space again, but libvirt failed to resume a guest.',
        'The line has libvirt\'s error. Correct its cause, or run virsh '
        'resume.',
        _OPERATOR),

    LogMessage(
        'KVML901',
        'The state file of nova-compute cannot be written. nova-kvm-ext host '
        'health reads an old file, and reports that nova-compute hangs. '
        'Written once, until the file can be written again.',
        'Check [DEFAULT] state_path: is it full, read-only, of another user?',
        _OPERATOR),
    LogMessage(
        'KVML902',
        'What nova-compute counts for nova-kvm-ext metrics cannot be written '
        'below [DEFAULT] state_path. The service tries again, and loses '
        'nothing as long as it runs.',
        'Do what the line says: space, or the owner of kvm-ext-counters.',
        _OPERATOR),
)

BY_CODE = {row.code: row for row in TABLE}
