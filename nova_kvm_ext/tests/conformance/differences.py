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

"""The tests of Nova's whose outcome differs on purpose, each with the reason.

A listed test that passes fails, and so does a row that names no test, so the
list cannot rot.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
from importlib import metadata
from typing import Any
import unittest


@dataclasses.dataclass(frozen=True)
class Difference:
    """One test, or several of one class that differ for one reason.

    :ivar tests: names of test methods
    :ivar releases: major versions of Nova that have them; empty for all
    """

    case: str
    tests: tuple[str, ...]
    reason: str
    releases: tuple[int, ...] = ()

    def ids(self) -> list[str]:
        return [f'{self.case}.{test}' for test in self.tests]


_CONN = 'nova.tests.unit.virt.libvirt.test_driver.LibvirtConnTestCase'

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        _CONN, ('test__check_vtpm_support_non_qemu',
                'test_virtuozzo_min_version_ok'),
        'this driver runs kvm and qemu, and refuses lxc and parallels'),
    Difference(
        _CONN, ('test__check_cpu_compatibility_aarch64_qemu_custom_start_OK',
                'test__check_cpu_compatibility_enabled_and_disabled_flags',
                'test__check_cpu_compatibility_skip_compare_at_init',
                'test__check_cpu_compatibility_wrong_flag'),
        'a CPU model or flag that libvirt (here a fake one) does not know or '
        'the host cannot do is refused before Nova compares'),
    Difference(
        _CONN, ('test_min_version_ppc_ok', 'test_min_version_s390_ok',
                'test_service_resume_after_broken_connection'),
        'domain capabilities are asked for at start; the fake has none here'),
    Difference(
        _CONN, ('test_get_guest_config_with_qga_through_image_meta',),
        'the agent channel comes last and names no socket path'),
    Difference(
        _CONN, ('test_get_guest_config_with_qga_through_image_meta_with_sev',),
        'the agent channel comes last', releases=(31,)),
    Difference(
        _CONN, tuple(f'test_get_guest_config_with_qga_through_image_meta_with_'
                     f'sev_{number}' for number in (1, 2, 3)),
        'the agent channel comes last', releases=(32, 33)),
    Difference(
        _CONN, ('test_live_snapshot', 'test_live_snapshot_with_quiesce',
                'test_live_snapshot_with_require_quiesce',
                'test_live_snapshot_with_require_quiesce_fails',
                'test_quiesce', 'test_unquiesce',
                'test_set_quiesced_agent_connection_fails',
                'test_set_admin_password_not_implemented'),
        'the channel in the live XML counts, not the image'),
    Difference(
        'nova.tests.unit.virt.test_virt_drivers.LibvirtConnTestCase',
        ('test_set_admin_password',),
        'the channel in the live XML counts, and the fake guest has none'),
    Difference(
        'nova.tests.unit.virt.libvirt.test_driver.'
        'LibvirtVolumeSnapshotTestCase',
        ('test_volume_snapshot_create_can_quiesce_quiesce_required_fails',
         'test_volume_snapshot_create_libgfapi',
         'test_volume_snapshot_create_noquiesce'),
        'the driver freezes the guest itself, for all snapshots that are '
        'under way, and libvirt does not; the fake guest has no agent'),
    Difference(
        _CONN, ('test_diagnostic_blockstats_exception',
                'test_diagnostic_full',
                'test_diagnostic_full_with_multiple_interfaces',
                'test_diagnostic_interfacestats_exception',
                'test_diagnostic_memorystats_exception',
                'test_diagnostic_vcpus_exception'),
        'the diagnostics have a key about the guest agent'),
    Difference(
        _CONN, ('test_reboot_different_ids',),
        'the guest is looked up once more'),
)


def nova_release() -> int:
    """Major version of the installed Nova."""
    return int(metadata.version('nova').partition('.')[0])


def _cases(suite: Any) -> Iterator[unittest.TestCase]:
    if isinstance(suite, unittest.TestCase):
        yield suite
    else:
        for test in suite:
            yield from _cases(test)


def _differs(case: Any, method: Callable[[], Any], reason: str) -> None:
    """Run a listed test: its failure is expected, its success is not."""
    try:
        method()
    except unittest.SkipTest:
        raise
    except Exception as e:
        # Whatever it ends with, it does not do what plain Nova does.
        case.expectFailure(f'differs on purpose: {reason}', case.fail, str(e))
    else:
        case.fail(f'passes, but is listed as different ({reason}): delete '
                  f'its row')


def mark(suite: unittest.TestSuite, module: str) -> unittest.TestSuite:
    """Expect the failure of the listed tests in a suite of one module.

    :raises LookupError: a row for that module names a test that is not there
    """
    wanted = {
        test: row.reason for row in DIFFERENCES
        if row.case.startswith(f'{module}.') and (
            not row.releases or nova_release() in row.releases)
        for test in row.ids()}
    for case in _cases(suite):
        reason = wanted.pop(case.id(), None)
        if reason is not None:
            name = case.id().rpartition('.')[2]
            setattr(case, name, functools.partial(
                _differs, case, getattr(case, name), reason))
    if wanted:
        raise LookupError(f'Nova {nova_release()} has no such tests: '
                          f'{", ".join(sorted(wanted))}')
    return suite
