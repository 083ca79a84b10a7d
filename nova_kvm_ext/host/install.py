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

Pure: takes facts, returns a sentence.
"""

import shlex

from nova_kvm_ext.host import model


def check(facts: model.InstallFacts) -> str | None:
    """Why ``compute_driver = kvm_ext.KVMDriver`` would not load.

    :returns: the problem with its remedy, or None if all is well
    """
    if facts.unknown or (facts.error is None and facts.has_package):
        return None
    if not facts.nova_directories:
        where = (f'where {facts.python} ({facts.how}) looks for it'
                 if facts.python else 'beside this package')
        return (f'Nova is not installed '
                f'{where} ({facts.error}). {_install(facts)}')
    where = ', '.join(facts.nova_directories)
    if not facts.has_package:
        return (f'compute_driver = kvm_ext.KVMDriver cannot load: '
                f'nova-compute runs with {facts.python} ({facts.how}), which '
                f'finds Nova in {where} and no nova_kvm_ext. '
                f'{_install(facts)}')
    if facts.door is None:
        return (f'nova.virt.kvm_ext is missing from {where}: this '
                f'installation is incomplete. Install nova-kvm-ext again.')
    return (f'compute_driver = kvm_ext.KVMDriver cannot load: Nova is '
            f'installed in {where} and looks for drivers only there, but this '
            f'package is in {facts.door}. Link it: {remedy(facts)}')


def _install(facts: model.InstallFacts) -> str:
    return (f'Install nova-kvm-ext with '
            f'{facts.python or "the Python that runs nova-compute"}.')


def remedy(facts: model.InstallFacts) -> str:
    """The command that lets Nova find the driver, or a sentence."""
    if not facts.has_package or not facts.nova_directories:
        return _install(facts)
    if facts.error is None:
        return ''
    if facts.door is None:
        return 'Install nova-kvm-ext again.'
    return (f'ln -s {shlex.quote(facts.door)} '
            f'{shlex.quote(facts.nova_directories[0])}/')
