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

"""The options of ``[kvm_ext]``.

:func:`register_opts` adds the options to a configuration, and
:func:`list_opts` hands them to oslo-config-generator. What they say together
with Nova's own is :class:`nova_kvm_ext.settings.Settings`. Pure: never
imports the global CONF, Nova or libvirt.
"""

from oslo_config import cfg
from oslo_config import types

from nova_kvm_ext import option_values

GROUP = cfg.OptGroup(
    option_values.OURS,
    title='KVM driver options',
    help="""
Options of the nova-kvm-ext compute driver (``compute_driver =
kvm_ext.KVMDriver``).

An option left unset here means what ``[libvirt]`` says, so a nova.conf
written for Nova's own libvirt driver works unchanged. Where an option is set
in both groups, the value here counts. The service says so in its log when it
starts, with the file that set each of the two values.
""")

_CPU_MODES = [
    ('host-model', 'The named model and features closest to the '
                   'host CPU; guests can migrate between like hosts.'),
    ('host-passthrough', 'The host CPU as it is; guests migrate only '
                         'between identical hosts. Needs KVM.'),
    ('maximum', 'Every feature that the hypervisor can give. Under '
                'qemu the best CPU there is; under kvm much the same '
                'as host-passthrough.'),
    ('custom', 'The model that cpu_model names.'),
    ('none', 'No CPU element: the default of QEMU (qemu64), on which '
             'guests built for x86-64-v2 or later do not boot.'),
]
# Model names of libvirt's cpu_map and of QEMU, and levels: Nehalem,
# Skylake-Server-v3, POWER9, gen15a-base, z14.2-base, 486, x86-64-v3.
_CPU_MODEL = r'^[A-Za-z0-9][A-Za-z0-9._-]*$'

_MIGRATION_POLICIES = [
    ('wait', 'Nothing, as Nova does: the migration goes on until it '
             'converges or live_migration_completion_timeout ends it.'),
    ('post-copy', 'It is switched to post-copy, where Nova permits that '
                  '(live_migration_permit_post_copy) and nothing '
                  'otherwise. The guest then runs at the destination and '
                  'fetches its memory from the source; it is lost if either '
                  'host or the network between them fails meanwhile.'),
    ('pause', 'The guest stands still until it has moved, for some '
              'seconds or minutes. It is never switched to post-copy, '
              'neither here nor by "server migration force complete".'),
    ('abort', 'The migration is aborted, and the guest stays where it '
              'is.'),
]

_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        'virt_type',
        choices=[
            ('kvm', 'Hardware virtualization. The service is told nothing '
                    'about hosts where KVM is broken: guests fail to start.'),
            ('qemu', 'Emulation in software (TCG): works everywhere, slowly.'),
            ('auto', 'kvm where a 64-bit guest really runs under it, qemu '
                     'elsewhere.'),
        ],
        help="""
Virtualization type of the guests.

``auto`` starts a tiny guest under KVM when the service starts, through
libvirt, so as the user that QEMU runs as and with the configured CPU. kvm is
taken only if that guest gets into 64-bit mode and counts to fifty million
within seconds: a /dev/kvm that opens and a libvirt that reports KVM are not
enough, as hosts with broken or emulated nested virtualization have both. The
log says which type was taken and why. The answer is kept under
``[DEFAULT] state_path`` for as long as the kernel, its boot, QEMU, libvirt,
the permissions of /dev/kvm and the CPU choice stay the same.

The test guest is an x86-64 one. On other architectures ``auto`` goes by
whether libvirt offers KVM.

Possible values:

* Unset: what ``[libvirt] virt_type`` says.
* ``kvm``, ``qemu``, ``auto``

Related options:

* ``[libvirt] virt_type``: has no effect where this option is set.
* ``cpu_mode``: ``host-passthrough`` needs kvm.
"""),
    cfg.StrOpt(
        'cpu_mode',
        choices=_CPU_MODES,
        help="""
CPU mode of the guests.

Possible values:

* Unset: what ``[libvirt] cpu_mode`` says.
* ``host-model``, ``host-passthrough``, ``maximum``, ``custom``, ``none``

Related options:

* ``[libvirt] cpu_mode``: has no effect where this option is set. It has no
  ``maximum``; Nova's own code is told ``host-passthrough`` then, the nearest
  mode it knows, and the guest's XML says ``maximum``.
* ``cpu_model``: refused with a mode other than ``custom``.
* ``[libvirt] cpu_models``: the model of ``custom`` where ``cpu_model`` is
  unset. It has no effect where this option is another mode.
* ``[libvirt] cpu_model_extra_flags``: features added to or taken from the
  CPU.
"""),
    cfg.StrOpt(
        'cpu_model',
        regex=_CPU_MODEL,
        help="""
Named CPU model of the guests, for ``cpu_mode = custom``.

Possible values:

* Unset: what ``[libvirt] cpu_models`` says.
* A model that libvirt knows, in upper or lower case, for example
  ``Nehalem`` or ``EPYC-Rome``. ``nova-kvm-ext cpu model list`` says which
  are usable on a host, and why the others are not.
* ``x86-64-v2``, ``x86-64-v2-AES``, ``x86-64-v3``, ``x86-64-v4``: the CPU of
  that level of the x86-64 ABI. It has the features of the level and no other
  that matters to programs, the same on Intel and AMD and on every host.

Related options:

* ``cpu_mode``: must be ``custom``. Where it is unset and ``[libvirt]
  cpu_mode`` is another mode, the mode is ``custom``.
* ``[libvirt] cpu_models`` (also written ``cpu_model``): has no effect where
  this option is set.
"""),
    cfg.ListOpt(
        'image_cpu_modes',
        default=['custom'],
        item_type=types.String(choices=_CPU_MODES),
        help="""
CPU modes that an image may ask for with its property ``kvm_ext_cpu_mode``.

Images are the tenants'. What a flavor asks for with its extra spec
``kvm_ext:cpu_mode`` is the operator's word and not limited by this. Asking
for what the host's guests get anyway is always allowed.

The default lets no tenant make a guest that is hard to live-migrate.
``custom`` gives the same CPU on every host, and ``image_cpu_models`` says
which. ``host-model``, ``host-passthrough`` and ``maximum`` copy the host on
which the guest happens to start, so that it can move only to hosts that can
do at least as much.

Possible values:

* A list of ``host-model``, ``host-passthrough``, ``maximum``, ``custom`` and
  ``none``. An empty list allows none.

Related options:

* ``image_cpu_models``
"""),
    cfg.ListOpt(
        'image_cpu_models',
        default=['x86-64-v2'],
        item_type=types.String(regex=_CPU_MODEL),
        help="""
CPU models that an image may ask for with its property ``kvm_ext_cpu_model``.

What a flavor asks for with its extra spec ``kvm_ext:cpu_model`` is not
limited by this. Asking for what the host's guests get anyway is always
allowed. Names are compared as they are written, in upper or lower case.

The default is the one level that every x86-64 server made since 2011 can do,
so that a guest with it can move to any of them. Allow more if all hosts that
a guest may move to can do more: a guest cannot move to a host that lacks a
feature of its model.

Possible values:

* A list of models and levels, as for ``cpu_model``. An empty list allows
  none.

Related options:

* ``image_cpu_modes``: must have ``custom`` for a model to be asked for.
"""),
    cfg.BoolOpt(
        'keep_guest_cpu',
        default=False,
        help="""
Keep the CPU that a guest has had when it is started again on the same host.

``host-model`` is worked out afresh each time that a guest is started. After
an upgrade of the host's kernel, microcode, QEMU or libvirt a guest can find
another CPU after a hard reboot, and one that it can no longer take to the
hosts that are not upgraded yet. With this option a hard reboot gives the
guest the CPU that it has had, as long as the host can still give it; if it
cannot, the log says which features the guest lost and gained.

Whether this is on or off, a guest that finds another CPU than before is
logged with the features that it gained and lost.

Related options:

* ``cpu_mode``: with ``custom`` a guest's CPU changes only if this file does.
"""),
    cfg.StrOpt(
        'vhost_net',
        default='prefer',
        choices=[
            ('prefer', 'Interfaces use vhost-net where the host can do it; '
                       'where it cannot, the log says so, once at start and '
                       'for each interface.'),
            ('require', 'As prefer, but the service does not start on a host '
                        'that cannot, and a guest or port that would lose '
                        'it is refused.'),
            ('off', 'Interfaces are served by QEMU itself.'),
        ],
        help="""
Whether the kernel (vhost-net) moves the packets of KVM guests.

libvirt falls back to QEMU's own, slower virtio without a word when
``/dev/vhost-net`` cannot be opened. With ``prefer`` and ``require`` an
interface names the vhost driver, so libvirt refuses the guest instead.

It is about virtio interfaces with a tap or macvtap device. vhost-user, SR-IOV,
vDPA and emulated models such as e1000 have data paths of their own, and
guests of ``virt_type = qemu`` do without vhost-net, whatever is said here.

Whether the host can do it is found by opening ``/dev/vhost-net`` as root, as
libvirt does, and again for each guest and port: a node can be there whose
module does not load. Opening the node also loads the module.

Possible values:

* ``prefer``, ``require``, ``off``

Related options:

* ``load_vhost_net``: have the module loaded.
* ``virt_type``: there is no vhost-net with ``qemu``.
"""),
    cfg.BoolOpt(
        'load_vhost_net',
        default=True,
        help="""
Load the kernel module vhost_net when the service starts.

Does what an administrator would do by hand: if ``/dev/vhost-net`` cannot be
opened, ``modprobe vhost_net`` is run as root through oslo.privsep, and the
log has its words if it fails. When this is switched off, the module must be
loaded by other means, by systemd's ``modules-load.d`` for one.

Possible values:

* Any boolean

Related options:

* ``vhost_net``: nothing is loaded with ``off``, or where guests do not run
  under KVM.
* ``[nova_sys_admin]``: the privsep context in which it runs.
"""),
    cfg.IntOpt(
        'max_vhost_queues',
        min=1, max=256,
        help="""
The most queues that an interface of a KVM guest gets.

Nova gives an interface one queue for each vCPU where multiqueue is enabled
(``hw:vif_multiqueue_enabled``). Each queue is a thread of the kernel and a
descriptor of QEMU. A flavor (``kvm_ext:vhost_queues``) and an image
(``kvm_ext_vhost_queues``) can lower the number further, not raise it.

It is about interfaces with a tap or macvtap device; those of vhost-user keep
one queue for each vCPU. Hosts between which guests migrate live should all
say 1 here, or none of them: a running guest keeps its number of queues, and
with 1 its tap device has no queues.

Possible values:

* Unset: 256, the most that the kernel gives a tap device.
* 1 to 256; 1 switches multiqueue off.

Related options:

* ``[libvirt] max_queues``: Nova's own limit; the lower one counts.
"""),
    cfg.StrOpt(
        'guest_agent',
        default='image',
        choices=[
            ('image', 'Guests whose image says hw_qemu_guest_agent=yes.'),
            ('always', 'All guests but those whose image says '
                       'hw_qemu_guest_agent=no.'),
        ],
        help="""
Which guests get a channel for the QEMU guest agent.

A running guest keeps what it has until its next hard reboot. Snapshots and
the admin password go by the channel that a guest has, whatever this option
and its image say.

Possible values:

* ``image``, ``always``

Related options:

* ``guest_agent_timeout``
"""),
    cfg.IntOpt(
        'guest_agent_timeout',
        default=10,
        min=1,
        max=3600,
        help="""
Seconds that a guest agent may take to answer a command.

An agent is a program of the tenant's: it may be stopped, dead, overloaded or
hostile. libvirt would wait for its answer without end, and so would the
service. The driver gives every guest this limit when it starts, when it has
migrated here, and when the service starts. ``virsh guest-agent-timeout``
changes it for one guest until then.

Some commands have more time: a freeze 60 seconds, because it writes out what
the guest has in its cache and Windows gives its writers as long (45 seconds
for a volume-backed instance, because Nova's API waits no longer than 60), and
a thaw 30. libvirt first finds out whether the agent listens, which takes up
to 5 seconds more.

Possible values:

* 1 to 3600

Related options:

* ``guest_agent``
* ``[DEFAULT] shutdown_timeout``: of it the agent has this much, but no more
  than a third, to shut the guest down before the power button is pressed.
"""),
    cfg.StrOpt(
        'resume_io_paused',
        default='auto',
        choices=[
            ('auto', 'A guest that found no space for its disk is resumed '
                     'when there is space again.'),
            ('never', 'The guest stays paused until it is resumed by hand '
                      '(virsh resume).'),
        ],
        help="""
Whether guests that an I/O error paused are resumed.

QEMU pauses a guest that writes where the host has no space left, and libvirt
says so. Nova leaves the guest alone, and its API does not unpause a server
that is ACTIVE.

With ``auto`` such guests are looked at with each update of this host's
resources, and resumed once the file system of the disk has space again: 64
MiB, or a twentieth of a file system that is smaller than 1.25 GiB. Where the
space cannot be looked at (block devices, network disks), the guest is resumed
for a try, which does no harm: it is paused again while there is no space. A
guest that is paused again soon is tried ever more seldom, at last every 15
minutes.

Resumed are only guests that libvirt says an I/O error paused for want of
space, that Nova means to run, and with which Nova does nothing at the time.
What Nova, an operator or a migration paused stays paused, and so does a guest
with another error than missing space.

Possible values:

* ``auto``, ``never``

Related options:

* ``[DEFAULT] update_resources_interval``: how often guests are looked at.
"""),
    cfg.StrOpt(
        'host_check',
        default='enforce',
        choices=[
            ('enforce', 'The service does not start on a host that cannot '
                        'run guests, and is disabled while it cannot.'),
            ('warn', 'The log says so; the service goes on.'),
            ('off', 'This host is not looked at.'),
        ],
        help="""
What becomes of this compute service on a host that cannot run guests.

When the service starts it runs the checks of ``nova-kvm-ext host check``. A
FAIL means that no guest runs here as nova.conf asks: /dev/kvm closed to
QEMU's user, a kernel without KVM, an emulator that is missing and the like.
Only what ``virt_type`` needs can fail.

While the service runs, /dev/kvm, the kernel's modules and the directories of
guests are looked at again with each update of this host's resources. A fault
disables the service with the reason, and the service is enabled again when
the fault is mended. A service that an operator disabled, or that Nova did
because it lost libvirt, is left alone.

Possible values:

* ``enforce``, ``warn``, ``off``

Related options:

* ``virt_type``: ``qemu`` and ``auto`` need no KVM.
* ``[DEFAULT] update_resources_interval``: how often this host is looked at.
"""),
    cfg.StrOpt(
        'migration_stalled',
        default='wait',
        choices=_MIGRATION_POLICIES,
        help="""
What becomes of a live migration that will not converge.

A guest that changes its memory faster than the network takes it is copied
without end. Nova has time-outs for that, which do not tell such a guest from a
big one. The driver judges each migration by what each iteration over the
guest's memory leaves for the next one, says in its log whether the migration
will converge, and does what this option says if it will not. That is never
before the third iteration, and only after two in a row and ten seconds have
said so; a migration of which it is not known is left alone.

It is done by Nova's own means, those of ``openstack server migration force
complete`` and ``abort``. A flavor can ask for another policy by its extra spec
``kvm_ext:migration_stalled``, an image by its property
``kvm_ext_migration_stalled``.

Possible values:

* ``wait``, ``post-copy``, ``pause``, ``abort``

Related options:

* ``migration_stalled_allowed``: what flavors and images may ask for.
* ``[libvirt] live_migration_permit_post_copy``: needed for ``post-copy``.
* ``[libvirt] live_migration_downtime``: how long the guest may stand still in
  the end. The more this is, the more migrations converge.
* ``[libvirt] live_migration_permit_auto_converge``: with it QEMU slows a guest
  that does not converge; nothing is done while it can be slowed further.
* ``[libvirt] live_migration_completion_timeout``: Nova's own time-out, which
  counts too.
"""),
    cfg.ListOpt(
        'migration_stalled_allowed',
        default=['wait', 'post-copy', 'pause'],
        item_type=types.String(choices=_MIGRATION_POLICIES),
        help="""
Policies of ``migration_stalled`` that a flavor or an image may ask for.

What is asked for and not allowed here is said in the log when the guest
moves, and ``migration_stalled`` counts. To ask for what that says is always
allowed. The default has no ``abort``, with which a tenant could keep an
operator from emptying a host.

Possible values:

* A list of ``wait``, ``post-copy``, ``pause`` and ``abort``. An empty list
  allows none.

Related options:

* ``migration_stalled``
"""),
    cfg.IntOpt(
        'image_max_virtual_gb',
        default=16384,
        min=1,
        help="""
The largest virtual disk, in GiB, of an image that a guest may boot from.

An image of a few kilobytes can describe a disk of many terabytes, and whatever
reads, converts or grows it must cope with that. One that describes more is
refused when it is fetched, before it is converted. The flavor's root disk,
where it has one, limits an image too.

Possible values:

* Any number from 1. The default is what ext4 can hold in one file.

Related options:

* ``[DEFAULT] force_raw_images``, ``[libvirt] images_cpu_time_limit``,
  ``[libvirt] images_address_space_limit``: how images are converted.
"""),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the options of ``[kvm_ext]``; again does no harm."""
    conf.register_group(GROUP)
    conf.register_opts(_OPTS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """The options for oslo-config-generator (``oslo.config.opts``)."""
    return [(GROUP, _OPTS)]
