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

"""Whether a guest is paused and why: its disks that had errors, since when.

QEMU pauses a guest when a write of the guest finds no space (its werror
policy, https://www.qemu.org/docs/master/system/qemu-manpage.html, ``-drive``).
libvirt's reason of the state distinguishes it from a requested pause.
"""

from typing import Any

from nova_kvm_ext import errors
from nova_kvm_ext.guests import reasons
from nova_kvm_ext import live_xml

PAUSED = 3
"""VIR_DOMAIN_PAUSED of virDomainState, see
https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainState"""

_DISK_NO_SPACE = 2
"""VIR_DOMAIN_DISK_ERROR_NO_SPACE of virDomainDiskErrorCode."""

_MESSAGE_IOERRORS = 1 << 2
"""VIR_DOMAIN_MESSAGE_IOERRORS of virDomainMessageType; libvirt-python of an
older libvirt has no name for it."""

_KEEPS_MESSAGES = 11_001_000
"""The libvirt from which on it is there, as virConnectGetLibVersion counts."""

_BUSY = 'QEMU is busy with another request'

_NO_JOB = 0
"""VIR_DOMAIN_JOB_NONE of virDomainJobType."""

_UNSUPPORTED = 84
"""VIR_ERR_OPERATION_UNSUPPORTED of virErrorNumber."""

_CONTROL_OK = 0
"""VIR_DOMAIN_CONTROL_OK of virDomainControlState."""


def _told(domain: Any) -> dict[str, reasons.Kept]:
    """The errors that libvirt keeps itself, none before libvirt 11.1."""
    version, _ = _asked(lambda: domain.connect().getLibVersion())
    if version is None or version < _KEEPS_MESSAGES:
        return {}
    messages, _ = _asked(domain.messages, _MESSAGE_IOERRORS)
    return reasons.from_messages(messages or ())


def _asked(call: Any, *args: Any) -> tuple[Any, Any]:
    """A call's answer, or the error of libvirt."""
    try:
        return call(*args), None
    except Exception as e:
        # Only libvirt's own: what else there is would be our defect.
        if errors.libvirt_error_code(e) is None:
            raise
        return None, e


def reason_of(domain: Any) -> reasons.Reason | None:
    """Why a guest is paused; asks libvirt only, which does not ask QEMU.

    :param domain: virDomain
    :returns: None where it is not
    :raises libvirt.libvirtError: there is no such domain
    """
    state, reason = domain.state(0)
    return reasons.Reason.of(reason) if state == PAUSED else None


def has_job(domain: Any) -> bool:
    """Whether libvirt has a job with a guest, as a migration in or out.

    :param domain: virDomain
    :raises libvirt.libvirtError: the guest does not run
    """
    try:
        return domain.jobInfo()[0] != _NO_JOB
    except Exception as e:
        # "migration statistics are available only on the source host": it
        # arrives, by post-copy if it runs already.
        if errors.libvirt_error_code(e) != _UNSUPPORTED:
            raise
        return True


def read(domain: Any) -> reasons.Pause | None:
    """Whether and why a guest is paused.

    For a guest with an I/O error QEMU is asked about its disks
    (virDomainGetDiskErrors) where libvirt does not know the cause itself. A
    QEMU that hangs never answers, and libvirt has no time-out for it: call
    this only where that holds up nobody else. A QEMU that is known to be busy
    is not asked.

    :param domain: virDomain
    :returns: None where the guest is not paused
    :raises libvirt.libvirtError: there is no such domain
    """
    reason = reason_of(domain)
    if reason is not reasons.Reason.IO_ERROR:
        return None if reason is None else reasons.Pause(reason)
    xml = live_xml.read(domain)
    if xml is None:
        # Without the place of the disks nothing is known of their space.
        return reasons.Pause(reason, unknown=_BUSY)
    by_target = {disk.target: disk for disk in reasons.disks(xml)}
    told = _told(domain)
    control, error = _asked(domain.controlInfo, 0)
    asked: dict[str, int] | None = None
    unknown = ''
    if error is None and control[0] != _CONTROL_OK:
        unknown = _BUSY
    elif error is None and len({cause for cause, _ in told.values()}) != 1:
        # Where libvirt knows the cause itself QEMU is left alone: a libvirt
        # as new as that has other calls wait for this one (11.3: 30 s, also
        # for the guest's XML). What libvirt keeps may be of an earlier pause,
        # so causes that differ do not tell.
        asked, error = _asked(domain.diskErrors)
    if error is not None:
        unknown = errors.clean(error)
    if asked:
        causes = {
            target: reasons.Cause.NO_SPACE if number == _DISK_NO_SPACE
            else reasons.Cause.OTHER for target, number in asked.items()}
    else:
        causes = {target: cause for target, (cause, _) in told.items()}
        unknown = unknown or 'QEMU keeps no status of these disks'
    times = [told[target][1] for target in causes if target in told]
    known = [when for when in times if when is not None]
    return reasons.Pause(
        reason, tuple(reasons.DiskError(target, cause, by_target.get(target))
                      for target, cause in sorted(causes.items())),
        since=max(known, default=None), unknown='' if causes else unknown)
