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

"""The names of all metrics; the reference page is generated from them.

Names, units and suffixes follow Prometheus' conventions:
https://prometheus.io/docs/practices/naming/. The values of each label are
here, so that no guest, image or tenant can make a series of its own. Only
``uuid`` belongs to a guest, and exists only while there is something to report
about the guest.

Pure.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import enum
import itertools
import re
import types

PREFIX = 'nova_kvm_ext_'

_CODE = re.compile('KVML?[0-9]{3}')

OTHER = 'other'
"""Stands for each value of a label that is not in its table."""


class Kind(enum.Enum):
    """https://prometheus.io/docs/concepts/metric_types/"""

    GAUGE = 'gauge'
    COUNTER = 'counter'
    HISTOGRAM = 'histogram'


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    :ivar name: as it is exposed; a counter's ends in ``_total``
    :ivar help: what it is, one sentence
    :ivar labels: values by label, in order; where the values are no fixed
        list, a tuple with one text in parentheses that says what they are
    :ivar buckets: of a histogram: upper bounds
    :ivar impossible: values that are never in one series together
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=dict)
    buckets: tuple[float, ...] = ()
    impossible: tuple[tuple[str, ...], ...] = ()

    @property
    def series(self) -> Iterator[tuple[str, ...]]:
        """The values of all series, where each label has a fixed list.

        A counter has them all before it counts: of a series that begins with
        1, Prometheus does not see the first one.
        """
        values = [[value for value in values if not value.startswith('(')]
                  for values in self.labels.values()]
        for key in itertools.product(*values):
            if self.labels and not any(
                    set(pair) <= set(key) for pair in self.impossible):
                yield key

    def value(self, label: str, given: str) -> str:
        """A label's value, or :data:`OTHER` where it is in no table."""
        known = self.labels[label]
        if label == 'code':
            # A file says them, which anything could have written.
            return given if _CODE.fullmatch(given) else OTHER
        if given in known or known[0].startswith('('):
            return given
        return OTHER


_THREE = ('yes', 'no', 'unknown')
_UUID = ('(UUID of the instance)',)

# -- what is seen when the command runs ---------------------------------------

BUILD_INFO = Metric(
    f'{PREFIX}build_info', Kind.GAUGE,
    'Version of nova-kvm-ext, of libvirt and of today\'s QEMU; always 1.',
    {'version': ('(version)',), 'libvirt': ('(version)',),
     'qemu': ('(version)',)})
LIBVIRT_UP = Metric(
    f'{PREFIX}libvirt_up', Kind.GAUGE,
    'Whether libvirt answered in time. With 0 there is none of the metrics '
    'about guests.')
COLLECTION = Metric(
    f'{PREFIX}collection_duration_seconds', Kind.GAUGE,
    'How long it took to look at this host.')
GUESTS = Metric(
    f'{PREFIX}guests', Kind.GAUGE, 'Running guests by libvirt\'s state.',
    {'state': ('running', 'blocked', 'paused', 'shutting_down', 'shut_off',
               'crashed', 'suspended', 'no_state')})
PAUSED = Metric(
    f'{PREFIX}guests_paused', Kind.GAUGE,
    'Paused guests by libvirt\'s reason.',
    {'reason': ('not_known', 'user', 'migration', 'save', 'dump', 'io_error',
                'watchdog', 'from_snapshot', 'shutting_down', 'snapshot',
                'crashed', 'starting_up', 'postcopy', 'postcopy_failed',
                'api_error')})
HUNG = Metric(
    f'{PREFIX}guests_hung', Kind.GAUGE,
    'Guests by whether their QEMU hangs: it is stopped, does not answer '
    'libvirt, or libvirt has lost it.', {'hung': _THREE})
AGENTS = Metric(
    f'{PREFIX}guests_agent', Kind.GAUGE,
    'Guests by their guest agent channel: whether something in the guest has '
    'it open; unknown where libvirt does not give its XML.',
    {'state': ('no_channel', 'disconnected', 'connected', 'unknown')})
FROZEN = Metric(
    f'{PREFIX}guests_frozen', Kind.GAUGE,
    'Guests that are recorded as frozen, those of snapshots that are made now '
    'among them.')
OLD_QEMU = Metric(
    f'{PREFIX}guests_qemu_outdated', Kind.GAUGE,
    'Guests by whether they run another QEMU than they would get today.',
    {'outdated': _THREE})
QEMU = Metric(
    f'{PREFIX}guests_qemu_version', Kind.GAUGE,
    'Guests by the version of the QEMU that they were started with.',
    {'version': ('(version, or unknown)',)})
OLD_MACHINE = Metric(
    f'{PREFIX}guests_machine_outdated', Kind.GAUGE,
    'Guests by whether their machine type is deprecated or gone.',
    {'outdated': _THREE})
DRIFT = Metric(
    f'{PREFIX}guests_cpu_drift', Kind.GAUGE,
    'Guests by whether nova.conf gives another CPU today than they have.',
    {'drift': _THREE})
CARDS = Metric(
    f'{PREFIX}network_cards', Kind.GAUGE,
    'Network cards of running guests by whether their XML asks for vhost-net '
    'and whether they use it.',
    {'vhost_asked': ('yes', 'no'), 'vhost_got': _THREE})

PROBLEM = Metric(
    f'{PREFIX}guest_problem', Kind.GAUGE,
    'Guests with something to look into; always 1, and gone with it.',
    {'uuid': _UUID, 'problem': (
        'hung', 'paused_by_error', 'frozen', 'vhost_lost', 'qemu_outdated',
        'machine_outdated', 'cpu_drift', 'not_read')})
FROZEN_SECONDS = Metric(
    f'{PREFIX}guest_frozen_seconds', Kind.GAUGE,
    'How long a guest has been recorded as frozen.', {'uuid': _UUID})

# -- what nova-compute wrote down ---------------------------------------------

HEALTH = Metric(
    f'{PREFIX}service_health', Kind.GAUGE,
    'What nova-kvm-ext host health says of a part of nova-compute; 1 for the '
    'result that is the case.',
    {'part': ('(part)',), 'result': ('PASS', 'WARN', 'FAIL', 'UNKNOWN')})
CHECK = Metric(
    f'{PREFIX}host_check', Kind.GAUGE,
    'Results of the host check that nova-compute ran last; always 1. Checks '
    'that passed or were left out are counted in host_checks.',
    {'code': ('(code of a check, as KVM101)',), 'result': ('WARN', 'FAIL')})
CHECKS = Metric(
    f'{PREFIX}host_checks', Kind.GAUGE,
    'Number of checks of the host by their result.',
    {'result': ('PASS', 'WARN', 'FAIL', 'SKIP')})
CHECK_TIME = Metric(
    f'{PREFIX}host_check_timestamp_seconds', Kind.GAUGE,
    'When nova-compute ran the host check last.')

# -- what nova-compute counts -------------------------------------------------

LOGGED = Metric(
    f'{PREFIX}log_messages_total', Kind.COUNTER,
    'Messages of level WARNING and above by their code, also those that were '
    'left out of the log because they repeat themselves.',
    {'code': ('(code of a message, as KVML403)',)})
SNAPSHOTS = Metric(
    f'{PREFIX}snapshots_total', Kind.COUNTER,
    'Snapshots by whether the guest was quiesced, and by what decided that. '
    'Of volumes those that are files, which libvirt snapshots.',
    {'of': ('image', 'volume'), 'quiesced': _THREE,
     'reason': ('frozen', 'no_agent', 'not_frozen', 'thawed', 'cold',
                'not_said', 'not_running', 'not_asked', 'nothing'),
     'result': ('made', 'failed')},
    impossible=tuple(
        (reason, quiesced) for reason, true in (
            ('frozen', 'yes'), ('no_agent', 'no'), ('not_frozen', 'no'),
            ('thawed', 'no'), ('cold', 'no'), ('not_said', 'unknown'),
            ('not_running', 'unknown'), ('not_asked', 'unknown'),
            ('nothing', 'unknown'))
        for quiesced in _THREE if quiesced != true))
FREEZES = Metric(
    f'{PREFIX}freeze_duration_seconds', Kind.HISTOGRAM,
    'How long guests were frozen for snapshots.',
    buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 300))
MIGRATIONS = Metric(
    f'{PREFIX}migrations_total', Kind.COUNTER,
    'Live migrations from this host by the last verdict on whether they '
    'converge, and what happened to them.',
    {'verdict': ('converges', 'stalls', 'unknown'),
     'result': ('completed', 'failed')})
DOWNTIME = Metric(
    f'{PREFIX}migration_downtime_seconds', Kind.HISTOGRAM,
    'Downtime of completed live migrations from this host, as libvirt says.',
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30))
CONVERSIONS = Metric(
    f'{PREFIX}image_conversions_total', Kind.COUNTER,
    'Images that were converted for the image cache, by their format.',
    {'format': ('qed', 'vmdk', 'vhdx', 'qcow2', 'vdi', 'vhd', 'raw', OTHER),
     'result': ('converted', 'failed')})
REFUSALS = Metric(
    f'{PREFIX}image_refusals_total', Kind.COUNTER,
    'Images that were refused, by the check that refused them.',
    {'check': ('backing_file', 'content', 'data_file', 'descriptor',
               'disk_format', 'encrypted', 'flavor', 'footer', 'inside',
               'luks', 'mbr', 'packed', 'polyglot', 'qed', 'qemu_img',
               'unknown_features', 'version', 'virtual_size',
               'vmdk_allowed_types', OTHER)})

COUNTED = types.MappingProxyType({metric.name: metric for metric in (
    LOGGED, SNAPSHOTS, FREEZES, MIGRATIONS, DOWNTIME, CONVERSIONS,
    REFUSALS)})
"""Those that nova-compute counts."""

COUNTED_SINCE = Metric(
    f'{PREFIX}counters_created_timestamp_seconds', Kind.GAUGE,
    'Since when nova-compute has counted what it counts; it continues over '
    'restarts.')

ALL = (
    BUILD_INFO, LIBVIRT_UP, COLLECTION, GUESTS, PAUSED, HUNG, AGENTS, FROZEN,
    OLD_QEMU, QEMU, OLD_MACHINE, DRIFT, CARDS, PROBLEM, FROZEN_SECONDS,
    HEALTH, CHECK, CHECKS, CHECK_TIME, COUNTED_SINCE, *COUNTED.values())


def said(value: str) -> str:
    """Words of ours as the value of a label: ``no channel``, ``I/O error``."""
    return value.lower().replace(' ', '_').replace('-', '_')
