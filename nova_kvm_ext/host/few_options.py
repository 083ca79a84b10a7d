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

"""The Nova options that a check of guests needs, without all the others.

The import of ``nova.conf`` with all options and its dependencies takes most of
a second of CPU time. That is more than a check of 200 guests takes, and
``nova-kvm-ext metrics`` runs each minute. A unit test compares these options
with Nova's own.
"""

import importlib.util
import os
import socket

from oslo_config import cfg
from oslo_config import types

from nova_kvm_ext import conf


def _base_directory() -> str:
    """Where Nova is installed: its default of pybasedir."""
    found = importlib.util.find_spec('nova')
    places = [] if found is None else list(
        found.submodule_search_locations or ())
    for place in places:
        # nova/virt/kvm_ext alone is no Nova.
        if os.path.isdir(os.path.join(place, 'conf')):
            return os.path.dirname(os.path.abspath(place))
    return os.getcwd()


def default() -> list[cfg.Opt]:
    """Those of ``[DEFAULT]``."""
    return [cfg.StrOpt('pybasedir', default=_base_directory()),
            cfg.StrOpt('state_path', default='$pybasedir'),
            cfg.HostDomainOpt('host', default=socket.gethostname())]


def libvirt() -> list[cfg.Opt]:
    """Those of ``[libvirt]``."""
    return [
        cfg.StrOpt('connection_uri', default=''),
        cfg.StrOpt('virt_type', default='kvm',
                   choices=('kvm', 'lxc', 'qemu', 'parallels')),
        cfg.StrOpt('cpu_mode', choices=('host-model', 'host-passthrough',
                                        'custom', 'none')),
        cfg.ListOpt('cpu_models', deprecated_name='cpu_model', default=[]),
        cfg.ListOpt('cpu_model_extra_flags', default=[],
                    item_type=types.String(ignore_case=True)),
        cfg.ListOpt('hw_machine_type')]


def register() -> cfg.ConfigOpts:
    """A configuration with these options and ours, not read yet."""
    found = cfg.ConfigOpts()
    found.register_opts(default())
    found.register_opts(libvirt(), group='libvirt')
    conf.register_opts(found)
    return found
