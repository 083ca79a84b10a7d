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

"""Counts snapshots for the metrics of this host."""

from nova_kvm_ext import counters
from nova_kvm_ext.metrics import names
from nova_kvm_ext.storage import consistency


def snapshot(of: str, known: consistency.Consistency, made: bool = True
             ) -> None:
    """Count a snapshot that has been made, or has failed.

    :param of: ``image`` or ``volume``: what happens to it
    """
    counters.COUNTERS.add(
        names.SNAPSHOTS, of, known.answer, known.reason.name.lower(),
        'made' if made else 'failed')
