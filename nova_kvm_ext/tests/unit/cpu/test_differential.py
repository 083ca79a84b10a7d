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

"""LibvirtDriver and KVMDriver side by side: nothing else is refused.

A table of hosts, options, flavors and guests is given to both drivers on the
same fake libvirt, whose answers about CPUs are recorded in each row, as
libvirt gives them. What LibvirtDriver allows and KVMDriver refuses must be in
:data:`REFUSED`, with the reason why it cannot work; a row of it that no longer
differs fails, so that the list cannot rot.
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from unittest import mock

import fixtures
from nova import exception
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import hooks
from nova_kvm_ext import driver
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit import driver_base

CONF = driver.CONF

INCOMPATIBLE = 'incompatible'
UNKNOWN_FEATURE = 'internal error: Unknown CPU feature avx10'
NO_SUPPORT = 'this function is not supported by the connection driver'
_CODES = {INCOMPATIBLE: 91, UNKNOWN_FEATURE: 1, NO_SUPPORT: 3}


@dataclasses.dataclass(frozen=True)
class Row:
    """One situation.

    :ivar name: by which :data:`REFUSED` knows it
    :ivar libvirt: libvirt's answer about a CPU with the features that the key
        names; '' for all others. A number or the text of an error
    :ivar host: see hosts.capabilities()
    :ivar virt_type: of the guests here
    :ivar mode: of [libvirt] cpu_mode, models and flags likewise
    :ivar extra_specs: of the flavor of a guest that boots
    :ivar moves: the CPU of a guest that is migrated here
    :ivar arch: of its image, where it is emulated
    """

    name: str
    libvirt: tuple[tuple[str, int | str], ...] = (('', 2),)
    host: tuple[tuple[str, Any], ...] = ()
    virt_type: str = 'kvm'
    mode: str = 'host-model'
    models: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    extra_specs: tuple[tuple[str, str], ...] = ()
    moves: definition.CPU | None = None
    arch: str | None = None


def guest(model: str, *features: str, vendor: str | None = None
          ) -> definition.CPU:
    return definition.CPU(
        mode='custom', match='exact', model=model, vendor=vendor,
        features=tuple((n.lstrip('-'), 'disable' if n[0] == '-' else
                        'require') for n in features))


_SAYS_NO = (('', INCOMPATIBLE),)
_PENRYN = (('model', 'Penryn'),)
_WESTMERE = (('model', 'Westmere'),)

ROWS = (
    # What runs on both.
    Row('host-model'),
    Row('none', mode='none'),
    Row('passthrough', mode='host-passthrough'),
    Row('passthrough under qemu', mode='host-passthrough', virt_type='qemu'),
    Row('host-model under qemu', virt_type='qemu'),
    Row('model', mode='custom', models=('Penryn',)),
    Row('models', mode='custom', models=('Nehalem', 'Penryn')),
    Row('lower case', mode='custom', models=('penryn',)),
    Row('flags', mode='custom', models=('Penryn',), flags=('aes', '-pni')),
    Row('flag that host-model lacks', flags=('pcid',)),
    Row('flag that does not migrate', flags=('pcid', '-vme')),
    Row('odd vendor', host=(('vendor', 'Zhaoxin CentaurHauls'),)),
    Row('garbage in the document', host=(('garbage', True),)),
    # Models about which QEMU and libvirt disagree.
    Row('unusable, libvirt accepts', mode='custom', models=('EPYC',),
        host=(('lacks', ('sha-ni',)),)),
    Row('unusable, libvirt refuses', mode='custom', models=('EPYC',),
        host=(('lacks', ('sha-ni',)),), libvirt=_SAYS_NO),
    Row('unusable, libvirt cannot tell', mode='custom', models=('EPYC',),
        host=(('lacks', ('sha-ni',)),), libvirt=(('', NO_SUPPORT),)),
    Row('unusable less what is missing', mode='custom', models=('EPYC',),
        flags=('-sha-ni',), host=(('lacks', ('sha-ni',)),)),
    Row('unusable under qemu', mode='custom', models=('Skylake-Server',),
        virt_type='qemu', libvirt=_SAYS_NO),
    Row('one of two unusable, libvirt accepts', mode='custom',
        models=('Penryn', 'Skylake-Server')),
    Row('unknown model', mode='custom', models=('Penrin',)),
    Row('unknown flag', flags=('pciid',)),
    # Guests with required traits.
    Row('trait', mode='custom', models=('Penryn',),
        extra_specs=(('trait:HW_CPU_X86_SSSE3', 'required'),)),
    Row('trait that the model lacks', mode='custom', models=('Penryn',),
        extra_specs=(('trait:HW_CPU_X86_AVX2', 'required'),)),
    Row('trait by an extra flag', mode='custom', models=('Penryn',),
        flags=('aes',), extra_specs=(
            ('trait:HW_CPU_X86_AESNI', 'required'),)),
    Row('trait under host-model',
        extra_specs=(('trait:HW_CPU_X86_AVX2', 'required'),)),
    # Guests that move here.
    Row('moves', moves=guest('Nehalem'), host=_WESTMERE),
    Row('moves with topoext', moves=guest('EPYC', 'topoext', vendor='AMD'),
        libvirt=(('topoext', INCOMPATIBLE), ('', 2))),
    Row('moves with more than one CPU', moves=guest('EPYC', 'ht'),
        libvirt=(('ht', INCOMPATIBLE), ('', 2))),
    Row('moves with arch-capabilities',
        moves=guest('EPYC', 'arch-capabilities', 'rdctl-no'),
        libvirt=(('arch-capabilities', INCOMPATIBLE), ('', 2))),
    Row('moves with what is not there', moves=guest('Skylake-Server'),
        libvirt=_SAYS_NO),
    Row('moves, libvirt accepts', moves=guest('Skylake-Server')),
    Row('moves, libvirt refuses', moves=guest('Nehalem'), host=_WESTMERE,
        libvirt=_SAYS_NO),
    Row('moves, libvirt cannot tell', moves=guest('Nehalem'),
        host=_WESTMERE, libvirt=(('', NO_SUPPORT),)),
    Row('moves with an unknown feature', moves=guest('Nehalem', '-avx10'),
        host=_WESTMERE, libvirt=(('', UNKNOWN_FEATURE),)),
    Row('moves from another vendor', host=_PENRYN,
        moves=guest('Nehalem', vendor='AMD'), libvirt=_SAYS_NO),
    Row('moves under qemu', moves=guest('Nehalem'), virt_type='qemu'),
    Row('moves under qemu with what is not there', virt_type='qemu',
        moves=guest('Skylake-Server'), libvirt=_SAYS_NO),
    Row('moves under qemu, emulated', moves=guest('cortex-a57'),
        virt_type='qemu', arch='aarch64', libvirt=_SAYS_NO),
    Row('moves under qemu, emulated, libvirt cannot tell',
        moves=guest('cortex-a57'), virt_type='qemu', arch='aarch64',
        libvirt=(('', NO_SUPPORT),)),
    Row('moves with a model that QEMU lacks', moves=guest('cpu64-rhel6')),
)

REFUSED = {
    'passthrough under qemu':
        'LibvirtDriver starts, and each guest fails: libvirt, CPU mode '
        'host-passthrough is not supported by hypervisor',
    'unusable, libvirt cannot tell':
        'QEMU says that it cannot give the model, and libvirt\'s own CPU map '
        'gives the model what the host lacks: the start fails',
    'unknown flag':
        'LibvirtDriver looks at flags with cpu_mode = custom alone, and each '
        'guest fails: libvirt, unknown CPU feature',
    'moves under qemu with what is not there':
        'LibvirtDriver compares nothing under qemu, and the migration fails: '
        'the XML of a running guest has check=full, missing features',
    'moves with a model that QEMU lacks':
        'libvirt compares by its CPU map, and the migration fails: CPU model '
        'is not supported by hypervisor',
}


class DifferentialTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(objects.Instance, 'save'))

    def be(self, row: Row) -> None:
        host = dict(row.host)
        vendor, garbage = host.pop('vendor', None), host.pop('garbage', None)
        text = hosts.capabilities(row.virt_type, **host)
        if vendor:
            text = text.replace("vendor='AMD'", f"vendor='{vendor}'")
        if garbage:
            text = text.replace(
                "<mode name='custom' supported='yes'>",
                "<mode/><mode name='custom' supported='yes'><model/>"
                "<model usable='maybe' vendor=';'>&#155;</model>")
        theirs = fakelibvirt.Connection.getDomainCapabilities

        def answer(connection: Any, emulator: str | None,
                   *question: Any) -> str:
            return text if emulator is None else self._novas(
                theirs, connection, emulator, *question)

        def compared(connection: Any, emulator: Any, arch: Any, machine: Any,
                     virt_type: Any, xml: str, flags: int) -> int:
            required = definition.CPU.parse(xml).required
            for names, said in row.libvirt:
                if set(names.split()) <= required:
                    break
            if said == INCOMPATIBLE and not flags:
                return 0
            if isinstance(said, str):
                raise fakelibvirt.make_libvirtError(
                    fakelibvirt.libvirtError, said, error_code=_CODES[said])
            return said

        for name, ours in (('getDomainCapabilities', answer),
                           ('compareHypervisorCPU', compared)):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova.tests.fixtures.libvirt.Connection.{name}', ours))

    @staticmethod
    def _novas(theirs: Callable[..., str], *question: Any) -> str:
        return theirs(*question)

    def refuses(self, kind: type, row: Row) -> str | None:
        """Why a driver refuses the row's situation; None if it allows it."""
        for name in ('virt_type', 'cpu_mode', 'cpu_models'):
            CONF.clear_override(name, group='libvirt')
        self.flags(virt_type=row.virt_type, cpu_mode=row.mode,
                   cpu_models=list(row.models),
                   cpu_model_extra_flags=list(row.flags), group='libvirt')
        try:
            drvr = kind(fake.FakeVirtAPI())
            drvr.init_host('host')
            properties = ({'hw_emulation_architecture': row.arch}
                          if row.arch else {})
            instance = self.make_instance(
                properties, dict(row.extra_specs))
            if row.moves is None:
                self.make_guest(drvr, instance, properties)
            else:
                drvr._compare_cpu(
                    hooks._vcpu_model(row.moves), None, instance)
        except (exception.NovaException, ValueError) as e:
            return f'{type(e).__name__}: {e}'
        finally:
            for name in ('virt_type', 'cpu_mode', 'cpu_models'):
                CONF.clear_override(name, group='libvirt')
        return None

    def test_what_only_this_driver_refuses_is_listed(self):
        names = [row.name for row in ROWS]
        self.assertEqual(len(names), len(set(names)))
        self.assertLessEqual(set(REFUSED), set(names))
        seen, both = {}, 0
        for row in ROWS:
            with mock.patch.object(driver.LOG, 'critical'):
                self.be(row)
                plain = self.refuses(libvirt_driver.LibvirtDriver, row)
                ours = self.refuses(driver.KVMDriver, row)
            if ours is not None and plain is None:
                seen[row.name] = ours
            both += ours is None and plain is None
        unlisted = {name: said for name, said in seen.items()
                    if name not in REFUSED}
        self.assertEqual({}, unlisted)
        self.assertEqual([], [name for name in REFUSED if name not in seen],
                         'no longer refused: delete its row')
        # The table is worth something only where guests run.
        self.assertGreater(both, 20)
