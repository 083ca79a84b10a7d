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

"""``nova-kvm-ext host health`` without cliff, which would take too long.

:mod:`nova_kvm_ext.cmd.host` has its help; :func:`run` leaves every command
line that it does not know to that module.
"""

from __future__ import annotations

import json
import os
import sys

from nova_kvm_ext.health import probe
from nova_kvm_ext.health import verdict

STATE_PATH = probe.STATE_PATH
FORMATS = ('text', 'json')

_WITH_VALUE = {'--state-path': 'state_path', '--host': 'host',
               '-f': 'form', '--format': 'form'}


def run(argv: list[str]) -> int | None:
    """Answer a plain question.

    :param argv: what follows ``host health``
    :returns: the exit code; None where the whole command has to answer: for
        its help, a wrong or an abbreviated option, or to find nova.conf
    """
    found: dict[str, str | None] = {}
    alive = False
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition('=')
        if word == '--alive':
            alive = True
        elif word in _WITH_VALUE:
            found[_WITH_VALUE[word]] = next(words, None)
        elif equals and name in _WITH_VALUE and name.startswith('--'):
            found[_WITH_VALUE[name]] = value
        else:
            return None
    form = found.get('form', FORMATS[0])
    if None in found.values() or form not in FORMATS or any(
            not value or value.startswith('-') for value in found.values()
            if value is not None):
        return None
    return health(found.get('state_path'), found.get('host'), alive, form)


def health(state_path: str | None, host: str | None, alive: bool,
           form: str | None) -> int | None:
    """Judge and print.

    :param state_path: None for the usual one
    :param host: ``[DEFAULT] host``, None for the only one
    :param alive: only nova-compute itself
    :param form: one of FORMATS
    :returns: the exit code; None where there is no file at the usual place
    """
    try:
        parts = probe.judge_here(probe.read(state_path or STATE_PATH, host))
    except probe.NotKnown as e:
        if state_path is None and isinstance(e, probe.NoFile):
            return None
        parts = [verdict.Part(verdict.NOVA_COMPUTE, verdict.UNKNOWN, str(e))]
    if alive:
        parts = [part for part in parts if part.name == verdict.NOVA_COMPUTE]
    result = verdict.worst(parts)
    parts = [part._replace(details=probe.clean(part.details))
             for part in verdict.ordered(parts)]
    if form == 'json':
        text = json.dumps({'result': result, 'parts': [
            part._asdict() for part in parts]}, indent=2)
    else:
        text = '\n'.join(f'{part.result} {part.name}: {part.details}'
                         for part in parts)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The exit code is what a probe wants. Nothing is written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return verdict.CODES[result]
