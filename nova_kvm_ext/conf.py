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
:func:`list_opts` returns them to oslo-config-generator.
:class:`nova_kvm_ext.settings.Settings` combines them with Nova's own options.
Pure: never imports the global CONF, Nova or libvirt.
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

If an option is not set here, the option of ``[libvirt]`` counts, so a
nova.conf for Nova's own libvirt driver works unchanged. If an option is set
in both groups, the value here counts. The log of the service says so at each
start, with the file that set each of the two values.
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
    ('wait', 'Nothing, as Nova does: the migration continues until it '
             'converges or live_migration_completion_timeout ends it.'),
    ('post-copy', 'It is switched to post-copy, where Nova permits that '
                  '(live_migration_permit_post_copy) and nothing '
                  'otherwise. The guest then runs at the destination and '
                  'fetches its memory from the source; it is lost if either '
                  'host or the network between them fails meanwhile.'),
    ('pause', 'The guest is paused until it has moved, for some seconds or '
              'minutes. It is never switched to post-copy, neither here nor '
              'by "server migration force complete".'),
    ('abort', 'The migration is aborted, and the guest stays where it '
              'is.'),
]

_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        'virt_type',
        choices=[
            ('kvm', 'Hardware virtualization. Guests do not start on a host '
                    'where KVM does not work; see host_check.'),
            ('qemu', 'Emulation in software (TCG): works everywhere, slowly.'),
            ('auto', 'kvm where a 64-bit guest really runs under it, qemu '
                     'elsewhere.'),
        ],
        help="""
Virtualization type of the guests.

With ``auto`` the service starts a tiny guest under KVM at its start, through
libvirt, as QEMU's user and with the configured CPU. The type is kvm only if
this guest enters 64-bit mode and counts to fifty million within seconds. It
is not enough that /dev/kvm opens and libvirt reports KVM, because this is
also so on hosts with broken or emulated nested virtualization. The log says
which type was chosen and why. The answer is saved in ``[DEFAULT]
state_path`` until the host is booted, or the kernel, QEMU, libvirt, the
permissions of /dev/kvm or the CPU choice change.

The test guest is for x86-64. On other architectures ``auto`` is kvm if
libvirt offers KVM.

Possible values:

* Not set: the value of ``[libvirt] virt_type`` counts.
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

* Not set: the value of ``[libvirt] cpu_mode`` counts.
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

* Not set: the value of ``[libvirt] cpu_models`` counts.
* A model that libvirt knows, in upper or lower case, for example ``Nehalem``
  or ``EPYC-Rome``. ``nova-kvm-ext cpu model list`` says which are usable on
  a host, and why the others are not.
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

Tenants write images. Operators write flavors, so this option does not limit
the extra spec ``kvm_ext:cpu_mode``. An image may always ask for the CPU mode
that the host's guests get anyway.

With the default no tenant can make a guest that is difficult to
live-migrate. ``custom`` gives the same CPU on every host, and
``image_cpu_models`` says which CPU. ``host-model``, ``host-passthrough`` and
``maximum`` copy the host on which the guest happens to start, so that it can
move only to hosts that can do at least as much.

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

This option does not limit the extra spec ``kvm_ext:cpu_model`` of flavors.
An image may always ask for the CPU model that the host's guests get anyway.
Upper and lower case are not distinguished.

The default is the level that every x86-64 server since 2011 supports, so a
guest with this level can move to every host. Allow more models if all hosts
to which a guest may move support them: a guest cannot move to a host that
lacks a feature of its model.

Possible values:

* A list of models and levels, as for ``cpu_model``. An empty list allows
  none.

Related options:

* ``image_cpu_modes``: must have ``custom``, otherwise no model can be asked
  for.
"""),
    cfg.BoolOpt(
        'keep_guest_cpu',
        default=False,
        help="""
Keep the CPU that a guest has had when it is started again on the same host.

libvirt determines ``host-model`` again at each start of a guest. After an
upgrade of the host's kernel, microcode, QEMU or libvirt, a guest can have
another CPU after a hard reboot. The guest may then be unable to move to
hosts that are not upgraded yet. With this option a hard reboot gives the
guest the CPU that it had before, as long as the host can still give this
CPU. Otherwise the log says which features the guest lost and gained.

With any value, the log names each guest that has another CPU than before,
with the features that it gained and lost.

Related options:

* ``cpu_mode``: with ``custom`` a guest's CPU changes only if nova.conf
  changes.
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

If ``/dev/vhost-net`` cannot be opened, libvirt silently falls back to QEMU's
slower virtio. With ``prefer`` and ``require`` the XML of an interface names
the vhost driver, so libvirt refuses the guest instead.

The option is for virtio interfaces with a tap or macvtap device. vhost-user,
SR-IOV, vDPA and emulated models such as e1000 have other data paths, and
guests with ``virt_type = qemu`` never use vhost-net.

The driver opens ``/dev/vhost-net`` as root, as libvirt does, to find out
whether the host can use vhost-net. It does so again for each guest and port,
because the device node can exist although its module does not load. Opening
the node also loads the module.

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

If ``/dev/vhost-net`` cannot be opened, the service runs ``modprobe
vhost_net`` as root through oslo.privsep. If modprobe fails, the log has its
message. If this option is off, load the module in another way, for example
with systemd's ``modules-load.d``.

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
Maximum number of queues of an interface of a KVM guest.

Nova gives an interface one queue for each vCPU where multiqueue is enabled
(``hw:vif_multiqueue_enabled``). Each queue is a thread of the kernel and a
descriptor of QEMU. A flavor (``kvm_ext:vhost_queues``) and an image
(``kvm_ext_vhost_queues``) can lower the number further, not raise it.

The option is for interfaces with a tap or macvtap device; interfaces of
vhost-user keep one queue for each vCPU. If you set 1 on a host, set 1 on all
hosts to which its guests can live-migrate: a running guest keeps its number
of queues, and with 1 its tap device has no queues.

Possible values:

* Not set: 256, the maximum of the kernel for a tap device.
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

A running guest keeps or lacks its channel until its next hard reboot.
Snapshots and the admin password work if the guest has a channel, whatever
this option and the image say.

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

The tenant controls the agent: it may be stopped, dead, overloaded or
hostile. Without a limit, libvirt and the service would wait for its answer
without end. The driver sets this limit for every guest when the guest
starts, when it has migrated to this host, and when the service starts.
``virsh guest-agent-timeout`` changes the limit of one guest until then.

Some commands have more time. A freeze has 60 seconds, because the guest
writes its cache to the disk, and Windows gives its writers 60 seconds. A
freeze of a volume-backed instance has 45 seconds, because Nova's API waits
at most 60. A thaw has 30 seconds. libvirt first finds out whether the agent
answers, which takes up to 5 seconds more.

Possible values:

* 1 to 3600

Related options:

* ``guest_agent``
* ``[DEFAULT] shutdown_timeout``: the agent has this long to shut the guest
  down, but at most a third of ``shutdown_timeout``. Then the power button is
  pressed.
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

If a guest writes to its disk and the host has no space left, QEMU pauses the
guest. Nova does not resume the guest, and its API cannot unpause a server
that is ACTIVE.

With ``auto`` each periodic update checks such guests, and resumes a guest
when the file system of its disk has space again: 64 MiB, or 5 % of a file
system smaller than 1.25 GiB. If the space cannot be checked (block devices,
network disks), the guest is resumed as a test. This does no harm: if there
is still no space, QEMU pauses the guest again. If the guest is paused again
soon, the next tests are less and less often, at most every 15 minutes.

A guest is resumed only if libvirt reports that an I/O error for lack of
space paused it, if the guest should run by its state in Nova, and if Nova
has no task with it. A guest that Nova, an operator or a migration paused
stays paused, and so does a guest with another error than missing space.

Possible values:

* ``auto``, ``never``

Related options:

* ``[DEFAULT] update_resources_interval``: how often guests are checked.
"""),
    cfg.StrOpt(
        'host_check',
        default='enforce',
        choices=[
            ('enforce', 'The service does not start on a host that cannot '
                        'run guests, and is disabled while it cannot.'),
            ('warn', 'The log says so; the service continues.'),
            ('off', 'This host is not checked.'),
        ],
        help="""
What this compute service does on a host that cannot run guests.

When the service starts it runs the checks of ``nova-kvm-ext host check``. A
FAIL means that no guest runs on this host as nova.conf asks, for example
because QEMU's user may not open /dev/kvm, the kernel has no KVM, or the
emulator is missing. Only what ``virt_type`` needs can fail.

While the service runs, each periodic update checks /dev/kvm, the kernel's
modules and the directories of guests again. A fault disables the service
with the reason. When the fault is repaired, the service is enabled again. A
service that an operator disabled, or that Nova disabled because it lost
libvirt, stays disabled.

Possible values:

* ``enforce``, ``warn``, ``off``

Related options:

* ``virt_type``: ``qemu`` and ``auto`` need no KVM.
* ``[DEFAULT] update_resources_interval``: how often this host is checked.
"""),
    cfg.StrOpt(
        'migration_stalled',
        default='wait',
        choices=_MIGRATION_POLICIES,
        help="""
What the driver does with a live migration that will not converge.

If a guest changes its memory faster than the network can send it, a live
migration never ends. Nova's time-outs do not distinguish such a guest from a
large guest. The driver judges each migration by the memory that each
iteration leaves for the next one. The log says whether the migration will
converge. If not, the driver does what this option says. It acts only from
the third iteration on, and only if all iterations of the last ten seconds,
and at least two, say that the migration will not converge. If the answer is
not known, the driver does nothing.

The driver uses the code of Nova that ``openstack server migration force
complete`` and ``abort`` use. A flavor can ask for another policy with the
extra spec ``kvm_ext:migration_stalled``, an image with the property
``kvm_ext_migration_stalled``.

Possible values:

* ``wait``, ``post-copy``, ``pause``, ``abort``

Related options:

* ``migration_stalled_allowed``: what flavors and images may ask for.
* ``[libvirt] live_migration_permit_post_copy``: needed for ``post-copy``.
* ``[libvirt] live_migration_downtime``: how long the guest may be paused at
  the end. With a longer downtime more migrations converge.
* ``[libvirt] live_migration_permit_auto_converge``: with it QEMU slows a
  guest that does not converge; nothing is done while it can be slowed
  further.
* ``[libvirt] live_migration_completion_timeout``: Nova's own time-out, which
  counts too.
"""),
    cfg.ListOpt(
        'migration_stalled_allowed',
        default=['wait', 'post-copy', 'pause'],
        item_type=types.String(choices=_MIGRATION_POLICIES),
        help="""
Policies of ``migration_stalled`` that a flavor or an image may ask for.

If a flavor or an image asks for another policy, the log says so when the
guest moves, and ``migration_stalled`` applies. The policy of
``migration_stalled`` may always be asked for. The default has no ``abort``,
because with it a tenant could prevent an operator from emptying a host.

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

An image of a few kilobytes can describe a disk of many terabytes, which
takes long to read and convert. An image with a larger virtual disk is
refused when it is fetched, before it is converted. The flavor's root disk,
if it has one, limits an image too.

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
