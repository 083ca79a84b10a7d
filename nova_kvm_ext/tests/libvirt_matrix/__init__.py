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
"""Our verdicts about CPUs, compared with those of libvirt itself.

``tools/run-libvirt-matrix`` runs it. There are two beds: the documents of
libvirt's own source package with the results that libvirt's tests expect
(:mod:`documents`), and the libvirt and QEMU of each Debian, which start the
guests and say what they think of each CPU (:mod:`live`).
"""
