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

"""Whether the Python that runs nova-compute finds the driver.

That Python is asked itself: this process may run with another one, in another
virtual environment, which says nothing about nova-compute. The question is one
look at Python's path, bounded in time, asked as the user of nova-compute.
"""

import dataclasses
import json
import os
import subprocess
import sys

from nova_kvm_ext import errors
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import model
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

# What decides where Python looks, beside its own place and words.
_VARIABLES = ('PYTHONPATH', 'PYTHONHOME', 'PYTHONNOUSERSITE',
              'PYTHONUSERBASE', 'HOME', 'PATH', 'LD_LIBRARY_PATH')


def read(service: service_reader.Service | None = None
         ) -> model.InstallFacts:
    """Ask the Python of nova-compute.

    :param service: the nova-compute; None to look for it
    :returns: of the Python of this process where it is the same one, or where
        no nova-compute is found
    """
    found = service or service_reader.find()
    ours = facts.read_install()
    if not found.python:
        if found.pid is None:
            return ours
        return _unknown(ours, f'the Python of {found.how} is not known')
    if found.elsewhere:
        return _unknown(ours, f'nova-compute, {found.how}, has a file system '
                              f'of its own', elsewhere=True)
    if _is_ours(found):
        return ours
    python = ' '.join(found.python)
    environment = {name: found.environment[name] for name in _VARIABLES
                   if name in found.environment}
    if not environment and found.home:
        environment = {'HOME': found.home}
    uid, gid, groups = _user(found) or (None, None, None)
    try:
        done = subprocess.run(
            [*found.python, '-c', _QUESTION], cwd='/', env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors='replace', timeout=_SECONDS, user=uid, group=gid,
            extra_groups=groups)
        said = json.loads(done.stdout.strip().rpartition('\n')[2])
        directories = tuple(map(str, said['nova']))
        error, package = said['error'], list(map(str, said['package']))
    except (ValueError, TypeError, LookupError):
        return _unknown(
            ours, f'{python} ({found.how}) gives no answer: '
                  f'{errors.clean(done.stderr or done.stdout)}')
    except Exception as e:
        # By name: where eventlet has patched it, its class is another one.
        why = (f'within {_SECONDS} s' if type(e).__name__ == 'TimeoutExpired'
               else f'({errors.clean(e)})')
        return _unknown(ours, f'{python} ({found.how}) does not answer {why}')
    return model.InstallFacts(
        directories, facts.find_door(*package[:1]), None if error is None else
        errors.clean(error), python=errors.clean(python),
        how=errors.clean(found.how), has_package=bool(package))


def _unknown(ours: model.InstallFacts, why: str,
             elsewhere: bool = False) -> model.InstallFacts:
    return dataclasses.replace(ours, unknown=errors.clean(why),
                               elsewhere=elsewhere)


def _is_ours(found: service_reader.Service) -> bool:
    """Whether it is the Python of this process, in the same environment.

    A virtual environment is told by the directory of its Python, which is a
    link to the Python of another place.
    """
    theirs, ours = found.python[0], sys.executable
    return len(found.python) == 1 and not any(
        name.startswith('PYTHON') for name in found.environment) and (
        os.path.realpath(os.path.dirname(theirs)) ==
        os.path.realpath(os.path.dirname(ours))) and (
        os.path.realpath(theirs) == os.path.realpath(ours))


def _user(found: service_reader.Service
          ) -> tuple[int, int, tuple[int, ...]] | None:
    """Whom root becomes to ask; None to stay who asks.

    The service's user, or else the owner of that Python: root runs nothing
    that belongs to another user.
    """
    if os.geteuid() != 0:
        return None
    if found.user is not None:
        return found.user if found.user[0] != 0 else None
    try:
        # Of a virtual environment the link counts, not what it links to.
        status = os.lstat(found.python[0])
    except OSError:
        return None
    return (status.st_uid, status.st_gid, ()) if status.st_uid else None
