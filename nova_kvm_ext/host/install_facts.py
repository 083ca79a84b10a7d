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

"""Reads whether the Python that runs nova-compute finds the driver.

That Python is asked itself: this process may run with another one, in another
virtual environment, which says nothing about nova-compute. The question is one
look at Python's path, with a time limit, as the user of nova-compute.
"""

import dataclasses

from nova_kvm_ext import errors
from nova_kvm_ext.host import door
from nova_kvm_ext.host import model
from nova_kvm_ext.host import nova_python
from nova_kvm_ext.host import service as service_reader

_SECONDS = 20

# Without the directory in which it is asked. nova and nova.virt are imported,
# which hold nothing, and neither Nova's driver nor ours.
_QUESTION = """
import importlib.util, json, sys
sys.path[:] = [path for path in sys.path if path]
said = {'nova': [], 'error': None, 'package': []}
try:
    nova = importlib.util.find_spec('nova.virt')
    said['nova'] = list(nova.submodule_search_locations or ()) if nova else []
    if importlib.util.find_spec('nova.virt.kvm_ext') is None:
        said['error'] = 'nova.virt has no module kvm_ext'
except (ImportError, OSError) as e:
    said['error'] = str(e)
try:
    ours = importlib.util.find_spec('nova_kvm_ext')
    said['package'] = list(ours.submodule_search_locations) if ours else []
except (ImportError, OSError):
    pass
print(json.dumps(said))
"""


def read(service: service_reader.Service | None = None
         ) -> model.InstallFacts:
    """Ask the Python of nova-compute.

    :param service: the nova-compute; None to look for it
    :returns: of the Python of this process where it is the same one, or where
        no nova-compute is found
    """
    found = nova_python.find(service)
    ours = door.read_install()
    if found.unknown:
        return _unknown(ours, found.unknown, found.elsewhere)
    if found.ours:
        return ours
    answers, why, _ = found.ask(_QUESTION, _SECONDS)
    try:
        said = answers[-1]
        directories = tuple(map(str, said['nova']))
        error, package = said['error'], list(map(str, said['package']))
    except (LookupError, TypeError):
        return _unknown(ours, f'{found.name} ({found.how}) '
                              f'{why or "gives no answer"}')
    return model.InstallFacts(
        directories, door.find_door(*package[:1]), None if error is None else
        errors.clean(error), python=errors.clean(found.name),
        how=errors.clean(found.how), has_package=bool(package))


def _unknown(ours: model.InstallFacts, why: str,
             elsewhere: bool = False) -> model.InstallFacts:
    return dataclasses.replace(ours, unknown=errors.clean(why),
                               elsewhere=elsewhere)
