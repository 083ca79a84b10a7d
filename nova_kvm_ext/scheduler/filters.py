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

"""``KVMExtCPUFilter``: a live migration goes to a host that has the CPU.

Without it the conductor tries host after host, each with an allocation and a
call to the host, until one has all features of the guest's CPU. The driver
keeps the guest's exact CPU with the instance, and publishes with its compute
node what the host can give; the filter compares both.

The only module that runs in nova-scheduler. It imports pure modules and the
loggers, never the driver nor libvirt. It removes only hosts that are known to
lack something. A host passes if it publishes nothing, if nothing is kept of
the guest, or if the request is not a live migration.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import json
import re
from typing import Any

from nova.compute import task_states
from nova import context as nova_context
from nova import exception
from nova import objects
from nova.scheduler import filters
from oslo_log import log as logging

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import stored
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import export
from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds

LOG = logging.getLogger(__name__)

# Of what a host publishes, the digest alone is looked at where its kind is
# known: a thousand documents take a second to read.
_DIGEST = re.compile(r'"digest": ?"([0-9a-f]{16})"')
_MOST_KINDS = 512


class KVMExtCPUFilter(filters.BaseHostFilter):
    """Removes hosts that cannot run a guest's CPU, for a live migration."""

    def __init__(self) -> None:
        # nova-scheduler makes one object of each filter and keeps it.
        self._kinds: dict[str, kinds.Kind] = {}
        self._fleet: fit.Fleet | None = None

    def filter_all(self, filter_obj_list: Iterable[Any],
                   spec_obj: Any) -> Iterator[Any]:
        """The hosts that can run the guest's CPU, or may."""
        cpu = self._moving(spec_obj)
        if cpu is None:
            yield from filter_obj_list
            return
        hosts = [(host, self._kind(host)) for host in filter_obj_list]
        fleet = self._fleet_of(kind for _, kind in hosts if kind)
        answers = {kind.digest: fleet.fits(cpu, kind)
                   for kind in fleet.kinds}
        removed: dict[str, list[str]] = {}
        for host, kind in hosts:
            if kind and answers[kind.digest].possible is False:
                removed.setdefault(kind.digest, []).append(host.host)
        for digest, names in removed.items():
            answer = answers[digest]
            lacks = ', '.join((*answer.missing, *answer.unknown))
            LOG.info('%(count)d hosts of one kind (%(names)s) cannot run the '
                     'CPU of instance %(uuid)s: %(why)s%(lacks)s.',
                     {'count': len(names), 'names': usable.some(names),
                      'uuid': spec_obj.instance_uuid, 'why': answer.reason,
                      'lacks': f': {lacks}' if lacks else ''})
        for host, kind in hosts:
            if not kind or kind.digest not in removed:
                yield host

    def _fleet_of(self, found: Iterable[kinds.Kind]) -> fit.Fleet:
        """The kinds as a fleet; the same object as long as they stay."""
        by_digest = {kind.digest: kind for kind in found}
        if self._fleet is None or (
                {kind.digest for kind in self._fleet.kinds} !=
                set(by_digest)):
            self._fleet = fit.Fleet(tuple(by_digest.values()))
        return self._fleet

    def host_passes(self, host_state: Any, filter_properties: Any) -> bool:
        """As for one host alone."""
        return bool(list(self.filter_all([host_state], filter_properties)))

    @staticmethod
    def _moving(spec: Any) -> definition.CPU | None:
        """The CPU of a guest that shall move live; None for all else.

        A request does not say what it is for. That of a live migration names
        hosts to leave out, the source among them, and its instance has the
        task state that the API has given it.
        """
        if not ('ignore_hosts' in spec and spec.ignore_hosts):
            return None
        context = nova_context.get_admin_context()
        try:
            mapping = objects.InstanceMapping.get_by_instance_uuid(
                context, spec.instance_uuid)
            if mapping.cell_mapping is None:
                return None
            with nova_context.target_cell(
                    context, mapping.cell_mapping) as cell:
                instance = objects.Instance.get_by_uuid(
                    cell, spec.instance_uuid, expected_attrs=['vcpu_model'])
        except exception.NotFound:
            return None
        if instance.task_state != task_states.MIGRATING:
            return None
        return stored.cpu_of(instance)

    def _kind(self, host: Any) -> kinds.Kind | None:
        """What the host publishes; None where it is nothing."""
        text = host.cpu_info
        found = _DIGEST.search(text) if isinstance(text, str) else None
        if found is None:
            return None
        kind = self._kinds.get(found[1])
        if kind is not None:
            return kind
        try:
            said = export.from_dict(
                json.loads(text)[export.MARK], f'cpu_info of {host.host}')
        except (errors.HostError, ValueError, LookupError, TypeError) as e:
            LOG.debug('%s publishes nothing that can be read: %s',
                      host.host, errors.clean(e))
            return None
        kind = kinds.Kind(said.cpu, (said,))
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        self._kinds[found[1]] = kind
        return kind
