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

"""Runs a question in the Python that runs nova-compute.

This process may run with another Python, in another virtual environment, which
says nothing about nova-compute. A question is a short program, run as the user
of nova-compute and in its environment, and killed when it takes too long.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

from nova_kvm_ext import errors
from nova_kvm_ext.host import service as service_reader

# What decides where Python looks, beside its own place and words, and where
# Ceph's library finds its configuration.
_VARIABLES = ('PYTHONPATH', 'PYTHONHOME', 'PYTHONNOUSERSITE',
              'PYTHONUSERBASE', 'HOME', 'PATH', 'LD_LIBRARY_PATH',
              'CEPH_ARGS', 'CEPH_CONF', 'CEPH_KEYRING')


@dataclasses.dataclass(frozen=True)
class Python:
    """A Python that can be asked, or why none can.

    :ivar words: that start it
    :ivar how: why it is held for the one of nova-compute
    :ivar ours: whether it is the one of this process, in the same environment
    :ivar environment: of its process, None for that of this process
    :ivar user: (uid, gid, groups) whom root becomes to ask; None to stay who
        asks
    :ivar unknown: why it cannot be asked, or ''
    :ivar elsewhere: whether it cannot because nova-compute has a file system
        of its own
    """

    words: tuple[str, ...] = (sys.executable,)
    how: str = ''
    ours: bool = True
    environment: Mapping[str, str] | None = None
    user: tuple[int, int, tuple[int, ...]] | None = None
    unknown: str = ''
    elsewhere: bool = False

    @property
    def name(self) -> str:
        return ' '.join(self.words)

    def ask(self, question: str, seconds: float, given: str = ''
            ) -> tuple[list[Any], str, int | None]:
        """Run a program that prints lines of JSON.

        :param question: Python
        :param seconds: after which it is killed
        :param given: what it reads on standard input
        :returns: the values of the lines that it printed, whether or not it
            came to its end; why it did not, or ''; and the signal that ended
            it before its time, None where none did
        """
        uid, gid, groups = self.user or (None, None, None)
        said: Any = ''
        signal = None
        # No pipe: on eventlet, communicate() waits for ever on that of a
        # process that has ended without reading. No file: it may be a key.
        given_file = os.memfd_create('nova-kvm-ext')
        try:
            os.write(given_file, given.encode())
            os.lseek(given_file, 0, os.SEEK_SET)
            done = subprocess.run(
                [*self.words, '-c', question], cwd='/', env=self.environment,
                stdin=given_file, capture_output=True, text=True,
                errors='replace', timeout=seconds, user=uid, group=gid,
                extra_groups=groups)
            signal = -done.returncode if done.returncode < 0 else None
            said, why = done.stdout, (
                '' if done.returncode == 0 else
                f'gives no answer: {done.stderr or done.stdout}')
        except Exception as e:
            # By name: where eventlet has patched it, its class is another
            # one.
            if type(e).__name__ == 'TimeoutExpired':
                said = getattr(e, 'stdout', None) or ''
                why = f'does not answer within {seconds:g} s'
            else:
                why = f'does not answer ({e})'
        finally:
            os.close(given_file)
        if isinstance(said, bytes):
            said = said.decode(errors='replace')
        answers = []
        for line in said.splitlines():
            try:
                answers.append(json.loads(line))
            except ValueError:
                # A line of a library, or one that was cut.
                continue
        return answers, errors.clean(why), signal


def find(service: service_reader.Service | None = None) -> Python:
    """The Python of nova-compute.

    :param service: the nova-compute; None to look for it
    :returns: that of this process where it is the same one, or where no
        nova-compute is found
    """
    found = service or service_reader.find()
    if not found.python:
        if found.pid is None:
            return Python()
        return Python(unknown=f'the Python of {found.how} is not known')
    if found.elsewhere:
        return Python(unknown=f'nova-compute, {found.how}, has a file system '
                              f'of its own', elsewhere=True)
    if _is_ours(found):
        return Python(how=found.how, user=_user(found))
    environment = {name: found.environment[name] for name in _VARIABLES
                   if name in found.environment}
    if not environment and found.home:
        environment = {'HOME': found.home}
    return Python(tuple(found.python), found.how, False, environment,
                  _user(found))


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
