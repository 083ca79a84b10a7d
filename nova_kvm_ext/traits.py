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

"""The custom traits by which a scheduler can choose this driver's hosts.

Names them, and decides which to add and which to remove. Every trait with our
prefix is ours and is removed when it is no longer true. Traits of an operator
or of Nova are never changed. Pure: never talks to Placement.
"""

from collections.abc import Iterable
import re

import os_traits

PREFIX = os_traits.CUSTOM_NAMESPACE + 'KVM_EXT_'


def name(*parts: str) -> str:
    """The trait of these words.

    ``('cpu_model', 'EPYC-Rome')`` is CUSTOM_KVM_EXT_CPU_MODEL_EPYC_ROME.
    Placement allows A to Z, 0 to 9 and _, at most 255 characters.
    https://docs.openstack.org/api-ref/placement/#traits
    """
    words = re.sub('[^A-Z0-9]+', '_', '_'.join(parts).upper()).strip('_')
    return (PREFIX + words)[:255]


def changes(present: Iterable[str],
            wanted: Iterable[str]) -> tuple[set[str], set[str]]:
    """What to add to a resource provider and what to remove from it.

    :param present: all traits that the provider has
    :param wanted: those of ours that are true now, each from :func:`name`
    """
    ours = {trait for trait in present if trait.startswith(PREFIX)}
    return set(wanted) - ours, ours - set(wanted)
