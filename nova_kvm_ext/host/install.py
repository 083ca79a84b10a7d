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

"""Whether Nova's loader finds the driver where it is installed.

Pure: takes facts, gives a sentence.
"""

import shlex

from nova_kvm_ext.host import model


def check(facts: model.InstallFacts) -> str | None:
    """Why ``compute_driver = kvm_ext.KVMDriver`` would not load.

    :returns: the problem with its remedy, or None if all is well
    """
    if facts.error is None:
        return None
    if not facts.nova_directories:
        return (f'Nova is not installed beside this package '
                f'({facts.error}). Install nova-kvm-ext with the Python that '
                f'runs nova-compute.')
    where = ', '.join(facts.nova_directories)
    if facts.door is None:
        return (f'nova.virt.kvm_ext is missing from {where}: this '
                f'installation is incomplete. Install nova-kvm-ext again.')
    return (f'compute_driver = kvm_ext.KVMDriver cannot load: Nova is '
            f'installed in {where} and looks for drivers only there, but this '
            f'package is in {facts.door}. Link it: {remedy(facts)}')


def remedy(facts: model.InstallFacts) -> str:
    """The command that lets Nova find the driver, or '' where none does."""
    if facts.error is None or facts.door is None or (
            not facts.nova_directories):
        return ''
    return (f'ln -s {shlex.quote(facts.door)} '
            f'{shlex.quote(facts.nova_directories[0])}/')
