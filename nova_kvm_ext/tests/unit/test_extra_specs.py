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

"""The extra specs of this driver, through the validation of Nova's API."""

from nova.api.validation.extra_specs import validators
from nova import exception
from oslotest import base

from nova_kvm_ext import extra_specs
from nova_kvm_ext import request


class ExtraSpecsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        # Nova has loaded the entry points of the environment when it was
        # imported. Registered here again, the test does not depend on how
        # this tree is installed; test_packaging looks at entry points.
        for validator in extra_specs.register():
            validators.VALIDATORS[validator.name] = validator
            validators.NAMESPACES.add('kvm_ext')

    def test_good(self):
        for mode in ('host-model', 'host-passthrough', 'maximum', 'custom',
                     'none'):
            validators.validate('kvm_ext:cpu_mode', mode)
        for model in ('Nehalem', 'Skylake-Server-v3', 'x86-64-v2', '486'):
            validators.validate('kvm_ext:cpu_model', model)

    def test_bad(self):
        for name, value in (('cpu_mode', 'fast'), ('cpu_mode', ''),
                            ('cpu_model', ''), ('cpu_model', '-aes'),
                            ('cpu_model', 'a b'), ('cpu_model', 'x' * 65),
                            ('cpu_models', 'Nehalem'), ('cpumode', 'none')):
            self.assertRaises(exception.ValidationError, validators.validate,
                              f'kvm_ext:{name}', value)

    def test_vhost_queues(self):
        for value in ('1', '4', '256'):
            validators.validate('kvm_ext:vhost_queues', value)
        for name, value in (('vhost_queues', '0'), ('vhost_queues', '-1'),
                            ('vhost_queues', '257'), ('vhost_queues', 'all'),
                            ('vhost_queues', ''), ('vhost_queue', '4')):
            self.assertRaises(exception.ValidationError, validators.validate,
                              f'kvm_ext:{name}', value)

    def test_every_wish_has_its_validator(self):
        self.assertLessEqual(
            {request.EXTRA_SPEC_PREFIX + name for name in request.KNOWN},
            {validator.name for validator in extra_specs.register()})

    def test_described(self):
        for validator in extra_specs.register():
            self.assertTrue(validator.description)
            self.assertTrue(validator.value['description'])
