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
"""The Debian packages on a Debian 13 with its own nova-compute.

``tools/run-package-tests`` runs it. :mod:`cases` has what is tried; the rest
is that of the layouts of hosts: one root with a RabbitMQ, a nova-conductor, a
stand-in for Placement, and a libvirt.
"""
