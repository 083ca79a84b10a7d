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

"""KVMDriver: the hooks into Nova's libvirt driver.

A few lines each. No decision is made here: facts go to a pure function, its
decision to the designer. Nova's driver is private API that moves with each
release, so few methods are overridden, each calls ``super()`` and refines
its result, and arguments that are not needed pass through untouched.
"""

from collections.abc import Iterator
import contextlib
import os
from typing import Any

from nova import conf as nova_conf
from nova import exception
from nova.virt.libvirt import driver
from oslo_log import log as logging

from nova_kvm_ext import conf
from nova_kvm_ext.cpu import choose
from nova_kvm_ext import designer
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.host import virt_type
from nova_kvm_ext.vhost import vif

LOG = logging.getLogger(__name__)
CONF = nova_conf.CONF
conf.register_opts(CONF)


@contextlib.contextmanager
def _wrong_options_said() -> Iterator[None]:
    """Turn our refusals into Nova's exception, with the reason in the log.

    The log comes first: what catches the exception logs a traceback.
    """
    try:
        yield
    except errors.KVMExtError as e:
        LOG.critical('%s', e)
        raise exception.InvalidConfiguration(str(e)) from e


class KVMDriver(driver.LibvirtDriver):
    """Nova's libvirt driver for operators of KVM hosts.

    Loaded by ``compute_driver = kvm_ext.KVMDriver``.
    """

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        # Nova's __init__ reads options too, and its loader takes a bad value
        # for a class of the wrong type.
        with _wrong_options_said():
            conf.Settings.from_conf(CONF)
        super().__init__(virtapi, read_only)
        self.vif_driver = vif.KVMVIFDriver(self._host)
        self._cpu_choice: choose.CPUChoice | None = None

    def init_host(self, host: str) -> None:
        """Settle virt_type and CPU, then let Nova start up with them.

        :raises nova.exception.InvalidConfiguration: an option is wrong; the
            log has the option, the value and the remedy
        """
        with _wrong_options_said():
            self._settle_options()
        super().init_host(host)

    def _settle_options(self) -> None:
        """Resolve ``[kvm_ext]`` and tell Nova's own options the answer.

        This is the one place where the driver changes Nova's options. Nova
        reads virt_type, cpu_mode and cpu_models in its start-up check, in
        the guest's XML, in the VIF driver and for the placement traits, and
        all of them must see the same. It happens before Nova's init_host,
        which reads them first, and asks Nova's Host object for nothing but
        its connection: Host caches capabilities at the first look, which
        must come after Nova has powered up dedicated CPUs.
        """
        settings = conf.Settings.from_conf(CONF)
        # Nova registers its libvirt event loop here, once, whoever calls
        # first. It must precede the first connection.
        self._host.initialize()
        connection = self._host.get_connection()
        arch = os.uname().machine
        models = (connection.getCPUModelNames(arch)
                  if settings.cpu_models else ())

        def probe_kvm() -> tuple[bool, str]:
            return virt_type.probe(
                connection, arch, choose.choose(settings, 'kvm', models),
                cache_file=os.path.join(
                    CONF.state_path, 'kvm-ext-probe.json'),
                directory=CONF.instances_path)

        resolved = virt_type.resolve(settings, probe_kvm)
        choice = choose.choose(settings, resolved.value, models)
        LOG.info('Guests run with virt_type=%(type)s (%(why)s), '
                 'cpu_mode=%(mode)s (%(mode_option)s)%(models)s.',
                 {'type': resolved.value, 'why': resolved.reason,
                  'mode': choice.mode or 'as Nova chooses',
                  'mode_option': settings.cpu_mode_option,
                  'models': ''.join(f' {m}' for m in choice.models)})
        for name, value in (('virt_type', resolved.value),
                            ('cpu_mode', choice.nova_mode),
                            ('cpu_models', list(choice.models))):
            if CONF.libvirt[name] != value:
                CONF.set_override(name, value, group='libvirt')
        self._cpu_choice = choice

    def _get_guest_config(self, instance: Any, network_info: Any,
                          image_meta: Any, disk_info: Any,
                          *args: Any, **kwargs: Any) -> Any:
        """Nova's finished guest, refined."""
        guest = super()._get_guest_config(
            instance, network_info, image_meta, disk_info, *args, **kwargs)
        if self._cpu_choice is not None:
            designer.set_cpu_mode(guest.cpu, self._cpu_choice)
        wanted = image_meta.properties.get('hw_qemu_guest_agent')
        decision = channel.decide(
            # Nova reads nonsense as False, so only then it matters what the
            # tenant wrote.
            wanted, written=None if wanted is not False else
            instance.system_metadata.get('image_hw_qemu_guest_agent'))
        if not decision.understood:
            LOG.warning('No guest agent channel: %s.', decision.reason,
                        instance=instance)
        designer.set_guest_agent_channel(guest, decision)
        return guest
