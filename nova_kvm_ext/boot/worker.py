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

"""The process in which Nova boots one temporary guest.

Started by :mod:`nova_kvm_ext.boot.supervisor`, which passes a file with the
task and reads events from a pipe: one JSON object in each line. A separate
process, because Nova leaves threads that prevent a process from ending,
because a libvirt call that hangs cannot be interrupted from within, and
because the process may die: the supervisor then cleans up. If the supervisor
dies, the worker ends.
"""

# First of all: takes up threads or green threads as this release's own
# nova-compute does, which must come before anything else is imported.
import nova.cmd.compute  # noqa: F401

import ctypes
import dataclasses
import json
import logging
import os
import signal
import sys
import time
import traceback
from typing import Any
from typing import TextIO

from lxml import etree
from nova import exception
from nova import version
from nova.virt.libvirt import blockinfo
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_utils.imageutils import format_inspector

from nova_kvm_ext.boot import cloudless
from nova_kvm_ext.boot import inside
from nova_kvm_ext.boot import leftovers
from nova_kvm_ext.boot import report
from nova_kvm_ext.boot.spec import Spec
from nova_kvm_ext.boot import verify
from nova_kvm_ext.cpu import reader
from nova_kvm_ext import driver as kvm_driver
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.host import libvirt_facts
from nova_kvm_ext.vhost import process
from nova_kvm_ext.vhost import proof

_POLL = 0.2
_PR_SET_PDEATHSIG = 1   # Linux include/uapi/linux/prctl.h


def _only_for_group(directory: str, group: int) -> None:
    """Let one group pass through a directory of root, and nobody else.

    A nova-compute of another user that looks at the disks of all guests
    (_get_disk_over_committed_size_total, Nova 31 to 34) ignores those
    that are out of its sight. A disk that it sees and may not read ends its
    whole look at this host, for as long as the guest is there.

    :param group: QEMU's, as libvirt says it
    """
    if group:
        os.chown(directory, -1, group)
        os.chmod(directory, 0o710)


class Stop(Exception):
    """The boot cannot continue.

    :param code: the exit code
    :param problem: what is wrong, with the remedy
    """

    def __init__(self, code: ExitCode, problem: str) -> None:
        super().__init__(problem)
        self.code = code


class Terminated(BaseException):
    """SIGTERM. Not an Exception, so that nothing of Nova's swallows it."""


class Events:
    """The way to the supervisor."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def emit(self, kind: str, **data: Any) -> None:
        self._stream.write(json.dumps({'event': kind, **data}) + '\n')
        self._stream.flush()

    def step(self, name: str, details: str = '') -> None:
        """A step is done."""
        self.emit('step', name=name, details=details)


class _LogToEvents(logging.Handler):
    """Warnings of Nova, and what this package says, go to the user.

    Not those of libraries that look for optional parts of themselves.
    """

    def __init__(self, events: Events) -> None:
        super().__init__(logging.INFO)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        level = (logging.INFO if record.name.startswith('nova_kvm_ext')
                 else logging.WARNING)
        if record.name.startswith('nova') and record.levelno >= level:
            try:
                text = errors.clean(record.getMessage(), 500)
            except Exception:
                # A log call with wrong arguments must not fail the boot.
                self.handleError(record)
            else:
                self._events.emit('log', level=record.levelname, text=text)


def _as_stop(error: Exception, otherwise: ExitCode) -> Stop:
    """Any failure in words for the user, with its exit code.

    :param otherwise: the exit code of what is not known to be another's fault
    """
    if isinstance(error, Stop):
        return error
    if isinstance(error.__cause__, errors.HostError):
        # The driver made Nova's exception of it.
        error = error.__cause__
    if isinstance(error, (errors.InvalidOption, exception.InvalidCPUInfo,
                          exception.InvalidConfiguration, cfg.Error)):
        return Stop(ExitCode.USAGE, errors.clean(error, 1000))
    if isinstance(error, errors.HostError):
        return Stop(ExitCode.HOST, str(error))
    found = errors.libvirt_error(error)
    if found is None and not isinstance(
            error, (exception.NovaException, OSError,
                    processutils.ProcessExecutionError)):
        return Stop(otherwise, f'{type(error).__name__}: '
                    f'{errors.clean(error)} (this is a defect of '
                    f'nova-kvm-ext; --keep keeps its log)')
    words = str(found or error)
    if (isinstance(error, exception.HypervisorUnavailable) or
            'No space left on device' in words):
        otherwise = ExitCode.HOST
    return Stop(otherwise, errors.with_explanation(words))


class Boot:
    """One throw-away guest from its image to its end."""

    def __init__(self, spec: Spec, record: leftovers.Record,
                 events: Events) -> None:
        self.spec = spec
        self.record = record
        self.events = events

    def run(self) -> int:
        """Do it all.

        :returns: ExitCode.PASS or ExitCode.FAIL
        :raises Stop: it could not be done
        """
        try:
            self._nova()
            self._instance()
        except Exception as e:
            raise _as_stop(e, ExitCode.HOST) from e
        try:
            if self.spec.xml_only:
                self.events.emit('xml', text=self._guest_xml())
                return ExitCode.PASS
            self._spawn()
            failed = self._verify()
            if not self.record.keep:
                self.driver.destroy(self.context, self.instance, self.network)
                self.events.step('destroy')
        except Exception as e:
            raise _as_stop(e, ExitCode.NO_BOOT) from e
        return ExitCode.FAIL if failed else ExitCode.PASS

    def _nova(self) -> None:
        """Nova's configuration, our driver with its real init_host."""
        cloudless.configure(self.record.directory, self.spec.cache_dir,
                            self.spec.config_files)
        logging.getLogger().addHandler(_LogToEvents(self.events))
        self.events.step('nova', 'release ' + version.version_string())
        self.driver = kvm_driver.KVMDriver(cloudless.virtapi())
        self.driver.init_host(cloudless.CONF.host)
        # There is no periodic update here.
        self.driver._host_check.finish()
        self.record = dataclasses.replace(
            self.record, uri=self.driver._host._uri)
        self.record.write()
        self.events.step('driver', 'init_host on ' + self.record.uri)

    def _instance(self) -> None:
        """The image service and the instance's record in the database."""
        path = self.spec.image or ''
        if not os.path.isfile(path):
            raise errors.InvalidOption(
                f'--image {path}: there is no such file.')
        self.image = cloudless.LocalImage(
            path, self.spec.disk_format or _detect_format(path),
            self.spec.properties)
        self.image.serve(self.driver)
        self.context = cloudless.context()
        self.instance = cloudless.create_instance(
            self.context, self.record.uuid, self.image,
            vcpus=self.spec.vcpus, memory_mb=self.spec.memory_mb,
            extra_specs=self.spec.extra_specs)
        self.network = cloudless.network(self.record.tap, self.spec.bridge)

    def _guest_xml(self) -> str:
        """The XML that spawn would hand to libvirt."""
        image_meta = self.image.meta()
        disk_info = blockinfo.get_disk_info(
            cloudless.CONF.libvirt.virt_type, self.instance, image_meta)
        return self.driver._get_guest_xml(
            self.context, self.instance, self.network, disk_info, image_meta)

    def _spawn(self) -> None:
        connection = self.driver._host.get_connection()
        qemu = libvirt_facts.read(
            connection, self.record.uri, os.uname().machine).user
        if qemu is not None:
            _only_for_group(self.record.directory, qemu[1])
        self.record.mark_spawning()
        self.driver.spawn(
            self.context, self.instance, self.image.meta(), [], None, {},
            network_info=self.network, block_device_info=None)
        if self.record.tap and self.spec.bridge:
            cloudless.add_to_bridge(self.record.tap, self.spec.bridge)
        self.connection = self.driver._host.get_connection()
        self.domain = self.connection.lookupByUUIDString(self.record.uuid)
        self.events.step('spawn', self.instance.name)

    def _verify(self) -> bool:
        """Wait until the guest is up, then compare. True if a check failed.

        :raises Stop: the guest did not come up in time
        """
        domain = verify.Domain.from_xml(self.domain.XMLDesc(0))
        self.events.emit('domain', **dataclasses.asdict(domain))
        wants_agent = bool(self.image.meta().properties.get(
            'hw_qemu_guest_agent', False))
        seen, agent_answer = self._wait(domain)
        if seen is not None and seen.vulnerabilities:
            self.events.emit('vulnerabilities',
                             found=dict(seen.vulnerabilities))
        checks = verify.check_all(
            domain, wants_agent, agent_answer, seen,
            self._host_model(domain), reader.read_map(),
            has_agent=self.spec.has_agent)
        xml = self.domain.XMLDesc(0)
        guest = proof.running(xml)
        if guest is not None:
            checks += verify.check_vhost(proof.judge(
                proof.nics(xml), process.read_vhost([guest])[guest.uuid]))
        for check in checks:
            self.events.emit('check', **dataclasses.asdict(check))
        return any(check.result == verify.Result.FAIL for check in checks)

    def _host_model(self, domain: verify.Domain) -> str | None:
        """libvirt's expansion of host-model for guests like this one."""
        capabilities = etree.fromstring(self.connection.getDomainCapabilities(
            domain.emulator, domain.arch, domain.machine, domain.virt_type))
        mode = capabilities.find("cpu/mode[@name='host-model']")
        return None if mode is None else etree.tostring(
            mode, encoding='unicode')

    def _wait(self, domain: verify.Domain
              ) -> tuple[report.GuestReport | None, str | None]:
        """Wait until the guest is up and its agent, if any, answers.

        :returns: what the guest says of itself, and the agent's answer
        :raises Stop: neither a report, nor the expected text, nor the agent
            came in time
        """
        console_path = os.path.join(
            self.record.directory, 'instances', self.record.uuid,
            'console.log')
        agent = None
        if domain.agent_channel and self.spec.has_agent is not False:
            agent = inside.Agent(self.domain)
        deadline = time.monotonic() + self.spec.timeout
        seen, answer, is_up = None, None, False
        while time.monotonic() < deadline:
            console = inside.read_console(console_path)
            if seen is None:
                seen = report.parse(console)
                if seen is not None:
                    self.events.step('console', 'the guest reports')
                elif not is_up and self.spec.expect in console:
                    is_up = True
                    self.events.step('console', repr(self.spec.expect))
            if agent and answer is None and self._agent_connected():
                answer = agent.ping()
                if answer is not None:
                    self.events.step('agent', answer)
            if (seen or is_up or answer) and (agent is None or answer):
                break
            if not self.domain.isActive():
                raise Stop(ExitCode.NO_BOOT, 'The guest ended by itself. ' +
                           _tail(console))
            time.sleep(_POLL)
        else:
            if not (seen or is_up or answer):
                raise Stop(
                    ExitCode.NO_BOOT, f'The guest was not up within '
                    f'{self.spec.timeout:g} s: no report and no '
                    f'{self.spec.expect!r} on its console, no answer from a '
                    f'guest agent. {_tail(console)}')
        if seen is None and agent and answer:
            seen = agent.report()
        return seen, answer

    def _agent_connected(self) -> bool:
        """Whether something in the guest holds the agent's port open."""
        return 'connected' in etree.fromstring(
            self.domain.XMLDesc(0)).xpath(
                'devices/channel/target[@name=$name]/@state',
                name=channel.TARGET_NAME)


def _tail(console: str) -> str:
    """The last lines of a console, for an error message."""
    lines = [errors.clean(line, 160) for line in console.splitlines()]
    last = [line for line in lines if line][-8:]
    if not last:
        return 'Its console is empty: is the image bootable by BIOS?'
    return 'The end of its console:\n  ' + '\n  '.join(last)


def _detect_format(path: str) -> str:
    """The format that Glance would be told for these bytes.

    :raises errors.InvalidOption: no format that Nova's inspector knows
    """
    try:
        found = str(format_inspector.detect_file_format(path))
    except (format_inspector.ImageFormatError, OSError) as e:
        raise errors.InvalidOption(
            f'--image {path}: its format cannot be told '
            f'({errors.clean(e)}).', 'Give it with --disk-format.') from e
    # A disk with a partition table is what Glance calls raw.
    return 'raw' if found == 'gpt' else found


def _die_with_supervisor(supervisor: int) -> None:
    """Have the kernel send SIGTERM when the supervisor dies, however."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGTERM)


def _terminated(signum: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated()


def main(argv: list[str]) -> None:
    """Run one boot. The event ``done`` carries its exit code.

    :param argv: path of a file with the :class:`Spec` and the record as JSON,
        number of a file descriptor for events, process id of the supervisor
    """
    with open(argv[0]) as f:
        told = json.load(f)
    record = leftovers.Record(**told['record'])
    events = Events(os.fdopen(int(argv[1]), 'w'))
    supervisor = int(argv[2])
    try:
        signal.signal(signal.SIGTERM, _terminated)
        _die_with_supervisor(supervisor)
        try:
            code = Boot(Spec(**told['spec']), record, events).run()
        except Stop as e:
            traceback.print_exc()
            events.emit('error', text=str(e))
            code = e.code
        events.emit('done', code=code)
    except (Terminated, BrokenPipeError):
        pass
    if os.getppid() != supervisor:
        leftovers.clean(leftovers.read_record(record.directory) or record)


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nova's threads are not daemons: a plain exit would wait for them.
    os._exit(0)
