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

import dataclasses
import json
from unittest import mock

from nova.compute import task_states
from nova import exception
from nova import objects
from oslotest import base

from nova_kvm_ext.fleet import export
from nova_kvm_ext.scheduler import filters
from nova_kvm_ext.tests.unit.fleet import fleets

UUID = '5ed1a5c2-0000-4000-8000-000000000001'


def state(name, published):
    """A HostState, as far as the filter looks at it."""
    text = published
    if isinstance(published, export.Export):
        text = json.dumps({'arch': 'x86_64', 'model': 'EPYC',
                           export.MARK: export.to_dict(published)})
    return mock.Mock(spec=['host', 'cpu_info'], host=name, cpu_info=text)


class FilterTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.filter = filters.KVMExtCPUFilter()
        self.instance = objects.Instance(
            uuid=UUID, task_state=task_states.MIGRATING,
            vcpu_model=objects.VirtCPUModel(
                mode='custom', model='EPYC', vendor='AMD', match='exact',
                topology=None, features=[objects.VirtCPUFeature(
                    name='vme', policy='require')]))
        self.mapping = mock.Mock(spec=['cell_mapping'])
        self.by_uuid = self.replace(
            'nova.objects.InstanceMapping.get_by_instance_uuid',
            return_value=self.mapping)
        self.get = self.replace(
            'nova.objects.Instance.get_by_uuid', return_value=self.instance)
        self.replace('nova.context.target_cell')
        self.spec = objects.RequestSpec(
            instance_uuid=UUID, ignore_hosts=['source'])

    def replace(self, name, **kwargs):
        patcher = mock.patch(name, autospec=True, **kwargs)
        self.addCleanup(patcher.stop)
        return patcher.start()

    def passing(self, *states):
        return [host.host for host in
                self.filter.filter_all(list(states), self.spec)]

    def test_hosts_that_lack_something(self):
        self.assertEqual(['good', 'better'], self.passing(
            state('good', fleets.host('good', has=('vme',))),
            state('lacks', fleets.host('lacks')),
            state('other', fleets.host('other', 'Skylake-Server',
                                       has=('vme',))),
            state('better', fleets.host('better', has=('vme', 'pcid')))))

    def test_hosts_of_which_nothing_is_known(self):
        names = ('nothing', 'none', 'empty', 'novas', 'garbage', 'digest',
                 'untold')
        said = (None, 7, '', '{"arch": "x86_64"}', 'x',
                '{"kvm_ext": {"digest": "0123456789abcdef"}}',
                fleets.untold('untold'))
        self.assertEqual(list(names), self.passing(
            *map(state, names, said)))

    def test_boots_are_left_alone(self):
        self.spec.ignore_hosts = None
        self.assertEqual(['lacks'], self.passing(
            state('lacks', fleets.host('lacks'))))
        self.by_uuid.assert_not_called()
        self.spec = objects.RequestSpec(instance_uuid=UUID)
        self.assertEqual(['lacks'], self.passing(
            state('lacks', fleets.host('lacks'))))
        self.by_uuid.assert_not_called()

    def test_other_moves_are_left_alone(self):
        lacks = state('lacks', fleets.host('lacks'))
        for task in (task_states.RESIZE_PREP, task_states.REBUILDING, None):
            self.instance.task_state = task
            self.assertEqual(['lacks'], self.passing(lacks))
        self.instance.task_state = task_states.MIGRATING
        self.assertEqual([], self.passing(lacks))

    def test_guest_of_which_nothing_is_kept(self):
        lacks = state('lacks', fleets.host('lacks'))
        self.instance.vcpu_model = None
        self.assertEqual(['lacks'], self.passing(lacks))

    def test_instance_that_is_gone(self):
        lacks = state('lacks', fleets.host('lacks'))
        self.get.side_effect = exception.InstanceNotFound(instance_id=UUID)
        self.assertEqual(['lacks'], self.passing(lacks))
        self.by_uuid.side_effect = exception.InstanceMappingNotFound(
            uuid=UUID)
        self.assertEqual(['lacks'], self.passing(lacks))

    def test_instance_without_a_cell(self):
        self.mapping.cell_mapping = None
        self.assertEqual(['lacks'], self.passing(
            state('lacks', fleets.host('lacks'))))
        self.get.assert_not_called()

    def test_instance_is_read_once(self):
        self.passing(*(state(f'h{n}', fleets.host(f'h{n}'))
                       for n in range(10)))
        self.assertEqual(1, self.get.call_count)
        self.assertEqual(['vcpu_model'],
                         self.get.call_args.kwargs['expected_attrs'])

    def test_kind_is_read_once(self):
        host = state('a', fleets.host('a', has=('vme',)))
        same = state('b', fleets.host('b', has=('vme',)))
        with mock.patch.object(export, 'from_dict', autospec=True,
                               side_effect=export.from_dict) as read:
            self.assertEqual(['a', 'b'], self.passing(host, same))
            self.assertEqual(['b'], self.passing(same))
        self.assertEqual(1, read.call_count)

    def test_kinds_that_are_kept_are_few(self):
        with mock.patch.object(filters, '_MOST_KINDS', 2):
            for n in range(5):
                one = fleets.host('a', has=('vme',))
                odd = dataclasses.replace(one, cpu=dataclasses.replace(
                    one.cpu, known=one.cpu.known | {f'f{n}'}))
                self.assertEqual(['a'], self.passing(state('a', odd)))
                self.assertLessEqual(len(self.filter._kinds), 2)

    def test_log_names_what_is_missing(self):
        with self.assertLogs(filters.LOG.logger, 'INFO') as log:
            self.passing(state('lacks', fleets.host('lacks')))
        self.assertIn('1 hosts of one kind (lacks) cannot run the CPU',
                      log.output[0])
        self.assertIn(UUID, log.output[0])
        self.assertIn(': vme.', log.output[0])

    def test_log_has_a_line_for_each_kind(self):
        with self.assertLogs(filters.LOG.logger, 'INFO') as log:
            self.passing(*(
                state(f'h{n}', fleets.host(f'h{n}', has=has))
                for n in range(40) for has in [('pcid',) if n % 2 else ()]))
        self.assertEqual(2, len(log.output))
        self.assertIn('20 hosts', log.output[0])
        self.assertLess(len(log.output[0]), 400)

    def test_one_host(self):
        self.assertTrue(self.filter.host_passes(
            state('a', fleets.host('a', has=('vme',))), self.spec))
        self.assertFalse(self.filter.host_passes(
            state('a', fleets.host('a')), self.spec))
