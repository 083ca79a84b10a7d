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

"""Hosts with a handful of CPU models, for tests of the driver's side."""

from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import levels

_BASE = frozenset('cmov cx8 fpu fxsr mmx syscall sse sse2 lm nx pae apic '
                  'cx16 pni'.split())
_V2 = _BASE | {'lahf_lm', 'popcnt', 'sse4.1', 'sse4.2', 'ssse3'}
_V3 = _V2 | levels.find('x86-64-v3').needed
_MODELS = {
    'kvm64': _BASE,
    'qemu64': _BASE | {'svm'},
    'Penryn': _BASE | {'ssse3', 'sse4.1'},
    'Nehalem': _V2,
    'Westmere': _V2 | {'aes'},
    'EPYC': _V3 | {'svm', 'sha-ni'},
    'Skylake-Server': _V3 | {'avx512f', 'avx512bw', 'pcid'},
}
_VENDORS = {'EPYC': 'AMD', 'Penryn': 'Intel', 'Nehalem': 'Intel',
            'Westmere': 'Intel', 'Skylake-Server': 'Intel'}
_NAMES = frozenset().union(*_MODELS.values()) | {
    'hypervisor', 'vme', 'pcid', 'avx512cd', 'avx512dq', 'avx512vl'}

MAP = cpu_map.CPUMap(
    {name: (cpu_map.Bits((1, 0), (0, 0, 0, 1)),) for name in _NAMES},
    _MODELS, {}, frozenset())


def capabilities(virt_type: str = 'kvm', model: str = 'EPYC',
                 lacks: tuple[str, ...] = (), has: tuple[str, ...] = ()
                 ) -> str:
    """Domain capabilities of a host.

    :param model: what host-model is there, but for
    :param lacks: features of the model that it has not
    :param has: features that it has besides
    """
    available = _MODELS[model] - set(lacks) | set(has) | {'hypervisor'}
    features = ''.join(
        f"<feature policy='{policy}' name='{name}'/>"
        for policy, names in (('require', ('hypervisor', *has)),
                              ('disable', lacks)) for name in names)
    models = ''.join(
        "<model usable='{}' vendor='{}'>{}</model>".format(
            'yes' if needs <= available else 'no',
            _VENDORS.get(name, 'unknown'), name) + (
            '' if needs <= available else f"<blockers model='{name}'>" +
            ''.join(f"<feature name='{n}'/>"
                    for n in sorted(needs - available)) + '</blockers>')
        for name, needs in _MODELS.items())
    passthrough = 'yes' if virt_type == 'kvm' else 'no'
    return f"""<domainCapabilities>
  <path>/usr/bin/qemu-system-x86_64</path>
  <domain>{virt_type}</domain>
  <machine>pc-i440fx-7.2</machine>
  <arch>x86_64</arch>
  <cpu>
    <mode name='host-passthrough' supported='{passthrough}'/>
    <mode name='maximum' supported='yes'/>
    <mode name='host-model' supported='yes'>
      <model fallback='forbid'>{model}</model>
      <vendor>{_VENDORS.get(model, 'AMD')}</vendor>
      {features}
    </mode>
    <mode name='custom' supported='yes'>{models}</mode>
  </cpu>
</domainCapabilities>"""
