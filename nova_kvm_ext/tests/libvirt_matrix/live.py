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
"""The libvirt and QEMU of each Debian, in roots of this machine.

In each, guests of every model, of every level and of host-model are started,
paused, of type qemu and of type kvm, and each CPU that one got is started in
the others. :mod:`inside` does that there; what libvirt said is kept as JSON,
so it can be judged again without starting anything. The verdicts:

* ``start model``, ``start level``, ``start host-model``: the check of
  nova.conf says yes where such a guest starts as Nova starts it, no where
  libvirt refuses it; ``gets less`` where it starts, and its live XML says that
  it lacks features of what was asked for
* ``live self``: a running guest can run on its own host
* ``live from VERSION``: a guest that runs under another libvirt and QEMU can
  run here; libvirt's answer is a start with its exact CPU and check='full'
* ``document``, ``document of a host``: each CPU of libvirt's own tests against
  virConnectCompareHypervisorCPU
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import json
import lzma
import pathlib
import re
import subprocess
from typing import Any

from lxml import etree

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext.tests.libvirt_matrix import report
from nova_kvm_ext.tests.libvirt_matrix import verdicts

RELEASES = ('bookworm', 'trixie', 'sid')
TYPES = ('qemu', 'kvm')
_MACHINES = ('pc', 'q35')
_PACKAGES = ('libvirt-daemon', 'libvirt-daemon-driver-qemu',
             'python3-libvirt', 'qemu-system-x86')
_TIMEOUT = 3600
_FIXTURE_WORDS = 200
# Where libvirt or QEMU refuse a guest for its CPU. Other errors, such as a
# KVM that QEMU gets on badly with, say nothing about it.
_ABOUT_CPU = re.compile(
    'incompatible with host CPU|match specification|not supported by '
    'hypervisor|unable to find CPU|unknown CPU|host CPU does not|'
    'forbidden feature|host doesn\'t support|not provide required|'
    'CPU mode .* not supported|invalid CPU', re.IGNORECASE)

_VERSIONED = re.compile(r'-v[0-9]+$')

Captured = dict[str, Any]
"""What one root said: answers of inside.py by phase, and its CPU map."""


def capture(releases: Sequence[str], documents: Mapping[str, str],
            directory: pathlib.Path, say: Callable[[str], None]
            ) -> dict[str, str]:
    """Ask the libvirt of each release, and keep what it said.

    :param documents: XML of further CPUs to compare, by name
    :param directory: where it is kept, a file for each release
    :returns: why, for each release that could not be asked
    """
    # Needs root and mmdebstrap; the judging of what is kept does not.
    from nova_kvm_ext.tests import roots

    failed: dict[str, str] = {}
    found: dict[str, Captured] = {}
    running: dict[str, Any] = {}
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for release in releases:
            (directory / f'{release}.json').unlink(missing_ok=True)
            say(f'a root of {release}')
            try:
                running[release] = stack.enter_context(roots.Root(
                    release, _PACKAGES, kvm_mode=0o666, network=True,
                    binds=[(str(pathlib.Path(__file__).parent), '/matrix',
                            'ro')]))
            except (roots.RootError, OSError) as e:
                failed[release] = str(e)
                say(f'  {e}')

        def ask(request: Callable[[str], Mapping[str, Any]]
                ) -> dict[str, dict[str, Any]]:
            # Waiting for QEMU is most of it, so all at once.
            with futures.ThreadPoolExecutor(len(releases) or 1) as pool:
                jobs = {release: pool.submit(
                    _ask, root, release, request(release))
                    for release, root in running.items()}
            answers = {}
            for release, job in jobs.items():
                try:
                    answers[release] = job.result()
                except (OSError, ValueError,
                        subprocess.SubprocessError) as e:
                    failed[release] = str(e)
                    say(f'  {release}: {e}')
                    del running[release]
            return answers

        say('every model, level and host-model in each')
        for release, own in ask(lambda _: _own_request(documents)).items():
            tree = running[release].tree / 'usr/share/libvirt/cpu_map'
            found[release] = {
                'own': own, 'cpu_map': {
                    path.name: path.read_text()
                    for path in sorted(tree.glob('x86_*.xml'))}}
        say('the guests of the others in each')
        for release, others in ask(lambda release: {
                'types': TYPES, 'machines': [], 'compare': {},
                'start': _guests_of_others(release, found),
                'models': False}).items():
            found[release]['others'] = others
    for release, captured in found.items():
        (directory / f'{release}.json').write_text(json.dumps(captured))
    return failed


def _own_request(documents: Mapping[str, str]) -> dict[str, Any]:
    starts = {}
    for level in levels.ALL:
        cpu = level.cpu
        starts[f'{level.name}, full'] = cpu.to_xml().replace(
            '<cpu ', "<cpu check='full' ", 1)
        starts[level.name] = cpu.to_xml()
    return {'types': TYPES, 'machines': _MACHINES, 'models': True,
            'start': dict.fromkeys(TYPES, starts),
            'compare': dict(documents)}


def _ask(root: Any, release: str, request: Mapping[str, Any]
         ) -> dict[str, Any]:
    done = root.run(['python3', '/matrix/inside.py', release], check=False,
                    input=json.dumps(request), stdout=-1, stderr=None,
                    timeout=_TIMEOUT)
    if done.returncode:
        raise ValueError(f'inside.py ended with {done.returncode}')
    return json.loads(done.stdout)


def _guests_of_others(release: str, found: Mapping[str, Captured]
                      ) -> dict[str, dict[str, str]]:
    """The CPUs that guests got in the other roots, by type and name.

    Of models without a version: those with one are the same CPUs.
    """
    return {kind: {
        f'{other} {name}': start['live']
        for other, captured in found.items() if other != release
        for name, start in captured['own']['started'].get(kind, {}).items()
        if start['live'] and not name.endswith(', full') and
        not _VERSIONED.search(name)} for kind in TYPES}


def version(number: int) -> str:
    """libvirt's and QEMU's way to write 11.3.0 as a number."""
    return (f'{number // 1000000}.{number // 1000 % 1000}.'
            f'{number % 1000}')


def read(directory: pathlib.Path, releases: Iterable[str]
         ) -> dict[str, Captured]:
    """What an earlier run has kept."""
    return {release: json.loads(path.read_text()) for release in releases
            if (path := directory / f'{release}.json').exists()}


def as_fixture(captured: Captured) -> bytes:
    """What one root said, as small as it goes, for the unit tests.

    Without what is not about CPUs, and without the documents that every
    libvirt was asked about.
    """
    def dense(text: str) -> str:
        return re.sub(r'>\s+<', '><', text).strip()

    own = dict(captured['own'], compared={
        kind: {} for kind in captured['own']['compared']})
    for name in 'documents', 'supported':
        own[name] = {kind: said for kind, said in own.get(name, {}).items()}
    own['documents'] = {
        kind: {_MACHINES[0]: _cpus_alone(texts[_MACHINES[0]])}
        for kind, texts in own['documents'].items()}
    own['supported'] = {kind: _cpus_alone(text)
                        for kind, text in own['supported'].items()}
    answers = {'own': own, 'others': captured.get('others', {'started': {}})}
    for name, answer in answers.items():
        answers[name] = dict(answer, started={
            kind: {guest: {
                key: dense(value)[:_FIXTURE_WORDS] if key in ('words', 'said')
                else dense(value) if isinstance(value, str) else value
                for key, value in start.items()}
                for guest, start in starts.items()}
            for kind, starts in answer['started'].items()})
    answers['cpu_map'] = {name: dense(text) for name, text in
                          captured['cpu_map'].items()}
    return lzma.compress(json.dumps(answers).encode(), preset=9)


def _cpus_alone(text: str | None) -> str | None:
    """Domain capabilities without devices, paths of firmware and the like."""
    if text is None:
        return None
    root = etree.fromstring(text.encode(), etree.XMLParser(
        remove_blank_text=True))
    for child in list(root):
        if child.tag not in ('path', 'domain', 'machine', 'arch', 'cpu'):
            root.remove(child)
    return etree.tostring(root, encoding='unicode')


def from_fixture(content: bytes) -> Captured:
    return json.loads(lzma.decompress(content))


def judge(found: Mapping[str, Captured]) -> list[report.Bed]:
    """Our verdicts beside what each libvirt said; starts nothing."""
    versions = {release: version(captured['own']['libvirt'])
                for release, captured in found.items()}
    return [_Judge(captured, versions).bed() for captured in found.values()]


class _Judge:
    """The verdicts about what one root said."""

    def __init__(self, captured: Captured, versions: Mapping[str, str]
                 ) -> None:
        self._own = captured['own']
        self._others = captured.get('others', {'started': {}})
        self._versions = versions
        self._version = version(self._own['libvirt'])
        self._map = cpu_map.parse(
            text.encode() for text in captured['cpu_map'].values())

    def bed(self) -> report.Bed:
        bed = report.Bed(f'libvirt {self._version} with QEMU '
                         f'{version(self._own["qemu"])}')
        for kind, documents in self._own['documents'].items():
            texts = [text for text in documents.values() if text]
            bed.documents += len(texts) + len(self._own['compared'][kind])
            if not texts:
                bed.notes.append(f'there are no guests of type {kind}')
                continue
            try:
                host = usable.Host(
                    kind, self._capabilities(kind, texts[0]), self._map)
            except errors.HostError as e:
                bed.judged.append(verdicts.Verdict(
                    self._version, 'domain capabilities', kind, False, True,
                    e.problem))
                continue
            self._judge_type(kind, host, bed)
        return bed

    def _capabilities(self, kind: str, text: str
                      ) -> capabilities.DomainCapabilities:
        """As cpu/reader puts them together."""
        caps = capabilities.parse(text)
        more = self._own.get('supported', {}).get(kind)
        model = capabilities.parse(more).host_model if more else None
        return caps if model is None else dataclasses.replace(
            caps, supported=model.required)

    def _judge_type(self, kind: str, host: usable.Host, bed: report.Bed
                    ) -> None:
        elsewhere: dict[str, int] = {}
        for starts, of_others in (
                (self._own['started'][kind], False),
                (self._others['started'].get(kind, {}), True)):
            for name, start in starts.items():
                bed.started += bool(start['live']) and ', full' not in name
                if not start['live'] and not _ABOUT_CPU.search(
                        start['words']):
                    words = start['words'].strip().splitlines() or ['']
                    elsewhere[words[-1][-160:]] = elsewhere.get(
                        words[-1][-160:], 0) + 1
                elif of_others:
                    bed.judged.append(
                        self._from_elsewhere(kind, host, name, start))
                else:
                    bed.judged += self._start(kind, host, name, start)
        bed.notes += [f'{count} guests of type {kind} did not start for '
                      f'another reason than their CPU: {words}'
                      for words, count in elsewhere.items()]
        for name, said in self._own['compared'][kind].items():
            what = 'document' if not definition.CPU.parse(
                said['asked'], name).is_hosts else 'document of a host'
            bed.judged.append(self._compared(
                f'{what} ({kind})', name, said['asked'], host,
                said['answer'], said['words']))

    def _start(self, kind: str, host: usable.Host, name: str,
               start: Mapping[str, Any]) -> Iterable[verdicts.Verdict]:
        model, _, full = name.partition(', ')
        if start['live'] and not full:
            yield self._compared(f'live self ({kind})', name, start['live'],
                                 host, True)
        # check='full' is stricter than Nova: a guest that has more than its
        # model is refused too.
        if full:
            return
        if model == 'host-model':
            what, refused = 'host-model', usable.check_mode(model, host)
        else:
            what = 'level' if levels.find(model) else 'model'
            refused = usable.check_model(model, dataclasses.replace(
                # As the driver does, which asks libvirt first.
                host, answers={usable.cpu_of(model, (), host):
                               start['answer_before']}))
        if start['live'] and 'policy="disable"' in start['live']:
            what += ', gets less'
        yield verdicts.Verdict(
            self._version, f'start {what} ({kind})', model, refused is None,
            bool(start['live']),
            '' if refused is None else refused.problem, start['words'])

    def _from_elsewhere(self, kind: str, host: usable.Host, name: str,
                        start: Mapping[str, Any]) -> verdicts.Verdict:
        release, _, guest = name.partition(' ')
        return self._compared(
            f'live from {self._versions.get(release, release)} ({kind})',
            guest, start['asked'], host,
            bool(start['live']), start['words'])

    def _compared(self, question: str, name: str, xml: str,
                  host: usable.Host, theirs: bool | None, words: str = ''
                  ) -> verdicts.Verdict:
        found = compare.compare(
            definition.CPU.parse(xml, name), host.caps, host.known)
        missing = ' '.join(found.missing[:12])
        return verdicts.Verdict(
            self._version, question, name, found.possible, theirs,
            f'{found.reason}{missing and ": "}{missing}', words)
