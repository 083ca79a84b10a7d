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

"""Keeps the result of the probe guest while the result is valid.

A result depends on the kernel, QEMU, libvirt and the device. It is valid until
one of them changes or the host is started again. libvirt errors are recognized
as in :mod:`nova_kvm_ext.host.probe`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from typing import Any

from lxml import etree

from nova_kvm_ext import errors
from nova_kvm_ext.host import probe
from nova_kvm_ext.host import user_facts
from nova_kvm_ext import log

LOG = log.getLogger(__name__)

_CACHE_BYTES = 64 * 1024
_CACHE_KEYS = 8

_XML_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


def read_facts(conn: Any, emulator: str | None = None,
               root: str = '/') -> dict[str, str]:
    """What the probe's answer depends on, besides what is asked.

    :param emulator: path of the QEMU program; None for libvirt's default
    :param root: directory below which files are looked up
    :returns: words to compare, in no format to rely on
    """
    capabilities = etree.fromstring(conn.getCapabilities(), _XML_PARSER)
    if emulator is None:
        emulator = capabilities.findtext(
            'guest/arch[@name="x86_64"]/emulator', '')

    def status(path: str, *fields: str) -> str:
        try:
            found = os.stat(os.path.join(root, path.lstrip('/')))
        except OSError:
            return 'absent'
        return ' '.join(str(getattr(found, field)) for field in fields)

    # The user and group that QEMU runs as are libvirt's base label of the
    # security model "dac".
    user = ' '.join(
        label.text or ''
        for label in capabilities.iterfind('host/secmodel/baselabel'))
    ids = re.search(r'(\d+):\+?(\d+)', user)
    try:
        with open(os.path.join(
                root, 'proc/sys/kernel/random/boot_id')) as file:
            boot = file.read(64).strip()
    except OSError:
        boot = 'unknown'
    return {
        'kernel': os.uname().release,
        'boot': boot,
        'emulator': emulator,
        'emulator_file': status(emulator, 'st_mtime_ns', 'st_size'),
        'libvirt': str(conn.getLibVersion()),
        'qemu': str(conn.getVersion()),
        'user': user,
        'groups': '' if ids is None else ' '.join(map(
            str, user_facts.accounts(root).groups(int(ids[1]), int(ids[2])))),
        'device': status(
            '/dev/kvm', 'st_mode', 'st_uid', 'st_gid', 'st_rdev'),
        'acl': user_facts.read_acl(
            os.path.join(root, 'dev/kvm')).hex(),
    }


def cached_run(conn: Any, *, cache_file: str,
               key_facts: Mapping[str, str] | None = None,
               virt_type: str = 'kvm', cpu_xml: str | None = None,
               directories: Sequence[str] = (), emulator: str | None = None,
               machine: str | None = None,
               timeout: float = probe.TIMEOUT) -> probe.ProbeResult:
    """Like :func:`probe.settled_run`, but a lasting answer is kept.

    Kept are successes, time-outs of a guest that had the CPU, and failures
    beside a guest in software that ran. What libvirt or QEMU refused is quick
    to try again, so that what has been repaired is noticed at the next start.
    A kept answer stands for as long as all that it depends on is the same,
    the boot of the host among it. Where nothing is known now, the last
    answer of this host is given anyway, and said to be that.

    A cache file that cannot be read or written, or holds something else, means
    probing again and nothing worse. Of two processes that write it at once
    one loses its answer.

    :param cache_file: path; its directory must be one that only trusted
        users can write to
    :param key_facts: what the answer depends on; None to read it
        (:func:`read_facts`)
    :raises ValueError: ``cpu_xml`` is not a ``<cpu>`` element
    """
    options: dict[str, Any] = {
        'virt_type': virt_type, 'cpu_xml': cpu_xml, 'emulator': emulator,
        'machine': machine, 'timeout': timeout}
    kept = _load(cache_file)
    key_facts, key = _key(conn, key_facts, options)
    if key in kept:
        LOG.debug('The probe\'s answer is kept in %s', cache_file)
        return kept[key].result(f'answer kept in {cache_file}')
    result = probe.settled_run(conn, directories=directories, **options)
    if result.lasting and key is not None and key_facts is not None:
        kept[key] = _Kept(
            bool(result.runs), result.reason, result.seconds, virt_type,
            os.uname().nodename, datetime.datetime.now(
                datetime.timezone.utc).isoformat(timespec='seconds'),
            dict(key_facts))
        _store(cache_file, dict(list(kept.items())[-_CACHE_KEYS:]))
    if result.runs is None:
        last = next((answer for answer in reversed(kept.values())
                     if answer.virt_type == virt_type and
                     answer.host == os.uname().nodename), None)
        if last is not None:
            return last.result(last.said_again(
                result.reason, key_facts or {}, cache_file))
    return result


def kept_run(conn: Any, *, cache_file: str, virt_type: str = 'kvm',
             cpu_xml: str | None = None) -> probe.ProbeResult | None:
    """The answer that :func:`cached_run` would give without a guest.

    :returns: None where a guest would have to be started
    """
    kept = _load(cache_file)
    if not kept:
        return None
    _, key = _key(conn, None, {
        'virt_type': virt_type, 'cpu_xml': cpu_xml, 'emulator': None,
        'machine': None, 'timeout': probe.TIMEOUT})
    return (kept[key].result(f'answer kept in {cache_file}')
            if key in kept else None)


def _key(conn: Any, key_facts: Mapping[str, str] | None,
         options: Mapping[str, Any]
         ) -> tuple[Mapping[str, str] | None, str | None]:
    """What an answer depends on, and the key under which it is kept."""
    if key_facts is None:
        try:
            key_facts = read_facts(conn, options['emulator'])
        except Exception as e:
            if not probe.is_libvirt_error(e):
                raise
            LOG.debug('Probing without the cache: %s', errors.clean(e))
            return None, None
    return key_facts, hashlib.sha256(json.dumps(
        [sorted(key_facts.items()), sorted(options.items()),
         probe.SECTOR.hex()]).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A lasting answer, and of what host and when it was."""

    runs: bool
    reason: str
    seconds: float
    virt_type: str = ''
    host: str = ''
    when: str = ''
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def result(self, source: str) -> probe.ProbeResult:
        return probe.ProbeResult(
            self.runs, errors.clean(f'{self.reason} ({source})', 600),
            self.seconds, lasting=True)

    def said_again(self, doubt: str, now: Mapping[str, str],
                   cache_file: str) -> str:
        """Where this answer is from, where there is none of today."""
        changed = [name for name in now if self.facts.get(name) != now[name]]
        since = (f', before a change of {", ".join(changed)}' if changed
                 else '')
        return (f'answer of {self.when}{since}, kept in {cache_file}; now it '
                f'is not known: {doubt}')


def _load(cache_file: str) -> dict[str | None, _Kept]:
    """The kept answers by key, oldest first, without what is no answer."""
    try:
        # Opening a named pipe in the file's place would block.
        if not stat.S_ISREG(os.stat(cache_file).st_mode):
            raise ValueError(f'{cache_file} is not a regular file')
        with open(cache_file, 'rb') as file:
            answers = json.loads(file.read(_CACHE_BYTES))
        if not isinstance(answers, dict):
            raise ValueError(f'{cache_file} holds no JSON object')
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        LOG.debug('The probe\'s kept answers are ignored: %s',
                  errors.clean(e))
        return {}
    return {key: _kept(answer) for key, answer in answers.items()
            if _is_answer(answer)}


def _kept(answer: Mapping[str, Any]) -> _Kept:
    """An answer as the file has it; other words are made fit to show."""
    def text(name: str) -> str:
        value = answer.get(name)
        return errors.clean(value) if isinstance(value, str) else ''

    facts = answer.get('facts')
    return _Kept(
        answer['runs'], text('reason'), answer['seconds'], text('virt_type'),
        text('host'), text('when'), {
            str(name): str(value) for name, value in facts.items()}
        if isinstance(facts, dict) else {})


def _is_answer(answer: Any) -> bool:
    return (isinstance(answer, dict) and
            isinstance(answer.get('runs'), bool) and
            isinstance(answer.get('reason'), str) and
            isinstance(answer.get('seconds'), float) and
            math.isfinite(answer['seconds']))


def _store(cache_file: str, answers: Mapping[str | None, _Kept]) -> None:
    temporary = None
    try:
        # mkstemp gives the file the mode 0600.
        descriptor, temporary = tempfile.mkstemp(
            prefix='.kvm-ext-probe-', dir=os.path.dirname(cache_file) or '.')
        with open(descriptor, 'w') as file:
            json.dump({key: dataclasses.asdict(answer)
                       for key, answer in answers.items()}, file, indent=1)
        os.replace(temporary, cache_file)
    except OSError as e:
        LOG.debug('The probe\'s answer is not kept: %s', errors.clean(e))
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
