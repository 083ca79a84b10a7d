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

"""Runs as root: opens /dev/vhost-net, loads its module, reads a log.

Runs in Nova's own privileged daemon (oslo.privsep), so an operator need not
change sudoers or rootwrap, whose filter allows only that context. The daemon
imports this module by its name; oslo.privsep requires that the name begins
with the context's prefix, ``nova``, as ours does. msgpack must be able to
encode arguments and results.

The daemon lacks CAP_SYS_MODULE and does not need it: the kernel loads a module
for each user that may open its node, and modprobe runs as root, which gets
root's capabilities when it is started.
"""

import dataclasses
from typing import Any

import nova.privsep
from oslo_concurrency import processutils

from nova_kvm_ext import errors
from nova_kvm_ext.host import facts
from nova_kvm_ext.vhost import process


@nova.privsep.sys_admin_pctxt.entrypoint
def read_device(path: str) -> tuple[Any, ...]:
    """:func:`facts.read_device` as root: fields of model.DeviceFacts."""
    return dataclasses.astuple(facts.read_device(path))


@nova.privsep.sys_admin_pctxt.entrypoint
def read_fall_backs(domain: str) -> int | None:
    """:func:`process.read_fall_backs` as root, whose QEMU's logs are."""
    return process.read_fall_backs(domain)


@nova.privsep.sys_admin_pctxt.entrypoint
def modprobe(module: str) -> str:
    """Load a kernel module.

    :returns: how it fails, in modprobe's own words where it has some; empty
        where it succeeds
    """
    try:
        processutils.execute('modprobe', module)
    except processutils.ProcessExecutionError as e:
        return errors.clean(e.stderr or f'exit code {e.exit_code}')
    except OSError as e:
        return errors.clean(f'modprobe cannot be run: {e.strerror}')
    return ''
