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
"""The driver on the layouts that operators have, in roots of this machine.

``tools/run-layout-tests`` runs it. In each layout nova-compute's own script
starts, with a RabbitMQ and a nova-conductor of its own release and a stand-in
for Placement (:mod:`placement`); ``nova-kvm-ext host check`` says what it
thinks; and ``nova-kvm-ext guest boot`` boots a guest with that layout's
configuration. :mod:`system` is one root, :mod:`cases` the layouts,
:mod:`report` what is printed.
"""
