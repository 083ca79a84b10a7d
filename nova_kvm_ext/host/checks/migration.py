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


"""What live migrations to this host need.

Codes KVM7xx. Pure.
"""

from nova_kvm_ext.host.checks import causes
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model
from nova_kvm_ext.migration import policy

GROUP = verdict.Group()

_OPENS_DEVICE = (8, 0, 0)
"""The QEMU that asks /dev/userfaultfd first (its util/userfaultfd.c)."""

_GIVES_DEVICE = (10, 1, 0)
"""The libvirt from which on a guest that arrives with post-copy permitted is
given the device (https://libvirt.org/news.html, v10.1.0)."""

_PERMIT = '[libvirt] live_migration_permit_post_copy'
_SYSCTL = 'vm.unprivileged_userfaultfd'
_FILE = '/etc/sysctl.d/60-qemu-postcopy-migration.conf'
"""As libvirt names the file that it ships for this."""


@GROUP.check('KVM701', 'Post-copy', proof='')
def _post_copy(facts: model.HostFacts) -> verdict.Said:
    """Never a FAIL: guests run, and others can still be moved away."""
    settings = facts.options.settings
    stalled = settings.migration_stalled if settings else policy.WAIT
    if not facts.options.post_copy:
        if stalled == policy.POST_COPY:
            return verdict.warn(
                f'[kvm_ext] migration_stalled = post-copy, and {_PERMIT} does '
                f'not permit post-copy: nothing is done about a live '
                f'migration that does not converge',
                f'Set {_PERMIT} = true on all hosts, or another policy.')
        return verdict.skip(f'{_PERMIT} = false')
    found, user = facts.post_copy, facts.qemu_user
    if not found.looked:
        return verdict.skip('it was not checked')
    who = f'QEMU\'s user {user.user}'
    if found.call == '':
        return verdict.passed(f'{who} gets a userfaultfd from the kernel')
    doubt = '' if user.known else (
        '; which user libvirt gives QEMU is not known (KVM201)')
    if found.device is not None:
        said = _by_device(facts, found.device, who, doubt)
        if said is not None:
            return said
    if found.call is None and found.sysctl == '1':
        return verdict.passed(f'{_SYSCTL} = 1 gives every user a '
                              f'userfaultfd{doubt}')
    if found.call is None and (found.sysctl != '0' or user.uid == 0):
        return verdict.skip(
            f'whether {who} gets a userfaultfd is not known: only root can '
            f'try it, and {_SYSCTL} is {found.sysctl or "not there"}')
    if found.call == 'ENOSYS':
        return causes.weigh(facts, verdict.warn(
            f'this kernel has no userfaultfd (ENOSYS): {_no_move()}',
            f'Boot a kernel with CONFIG_USERFAULTFD, or set {_PERMIT} = '
            f'false on all hosts.'))
    return causes.weigh(facts, verdict.warn(
        f'{who} gets no userfaultfd ({found.call or _SYSCTL + " = 0"})'
        f'{doubt}: {_no_move()}',
        f'echo {_SYSCTL}=1 > {_FILE} && sysctl -p {_FILE}'))


def _by_device(facts: model.HostFacts, device: model.UseFacts, who: str,
               doubt: str) -> verdict.Said | None:
    """What /dev/userfaultfd says; None where QEMU does not get it."""
    version, libvirt = (facts.libvirt.qemu or facts.emulator.version,
                        facts.libvirt.version)
    if version is not None and version < _OPENS_DEVICE:
        return None
    if device.works:
        said = (f'{who} {"opens" if device.tried else "may open"} '
                f'{device.path}{doubt}')
    elif libvirt is None:
        return verdict.skip(
            f'{who} does not open {device.path}{doubt}. libvirt 10.1 and '
            f'later give it to QEMU, and the version of libvirt is not known')
    elif libvirt >= _GIVES_DEVICE:
        said = (f'libvirt gives QEMU {device.path} when a guest arrives '
                f'(cgroup_device_acl of qemu.conf must have it, if set)')
    else:
        return None
    if version is None:
        return verdict.skip(f'{said}, which QEMU takes from 8.0 on; its '
                            f'version is not known')
    return verdict.passed(said)


def _no_move() -> str:
    # Seen with libvirt 9.0 and QEMU 7.2.
    return (f'with {_PERMIT} = true every live migration to this host fails, '
            f'"Postcopy is not supported"')
