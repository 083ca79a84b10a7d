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

"""The part of the driver for its host: what knows Nova.

* :func:`explains_libvirt_errors` adds cause and remedy to a libvirt error that
  Nova handles.
* :class:`HostCheck` runs the checks of ``nova-kvm-ext host check`` when the
  service starts, and the checks of files while it runs.
* :func:`process_ends_unless_started` lets nova-compute end if its driver
  refuses to start.

:mod:`nova_kvm_ext.host.facts` reads facts and :mod:`nova_kvm_ext.host.checks`
judges them; this module only decides what happens to the service.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import inspect
import sys
from typing import Any

from nova import conf as nova_conf
from nova import context as nova_context
from nova import exception
from nova import objects
import nova.privsep
from nova import utils
from nova.virt.libvirt import driver as libvirt_driver

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext import errors
from nova_kvm_ext.host.checks import early as checks_early
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import model
from nova_kvm_ext.host import options
from nova_kvm_ext import log

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

MARK = 'nova-kvm-ext: '
"""How the reason begins for which we disable a service, after Nova's own
prefix. What does not begin so was not disabled by us."""

_LONGEST_REASON = 255
"""Characters of services.disabled_reason in Nova's database."""

_NO_MATTER = ('KVM401', 'KVM402', 'KVM503', 'KVM504')
"""By now the driver has been loaded and its options have been read; Nova
itself warns of old versions of libvirt and QEMU, and refuses older ones."""

_PRIVSEP = 'KVM403'

PROMPT = 5.0
"""Seconds in which a libvirt that is well has told what guests can have."""

_DISABLES = ('KVM404', 'KVM405')
"""A full or read-only disk keeps new guests away and never the service: who
else is to stop, delete or move away the guests that are here?"""


def explain_libvirt_error(error: BaseException, instance: Any = None) -> None:
    """Leave cause and remedy with a libvirt error, if it is a known one.

    The error stays the object that it is, with its type, code and text: Nova
    catches libvirt errors by these, and shows a tenant the text of some. The
    explanation is a note (PEP 678) instead. A note is printed wherever the
    traceback is: in the log, and in the ``details`` of an instance's fault,
    which only administrators see.

    Errors of Ceph's library, which Nova calls, and of the commands of Ceph
    that Nova runs are explained likewise.

    :param error: what was raised; libvirt's own may be among its causes,
        where Nova made another exception of it
    :param instance: whom it hit, for the log
    """
    found = errors.libvirt_error(error)
    who = 'libvirt'
    if found is None:
        found, who = errors.ceph_error(error), 'Nova or Ceph'
    row = None if found is None else errors.explain(found)
    # A method that explains may have called another one that did.
    if found is None or row is None or any(
            note.startswith(MARK)
            for note in getattr(found, '__notes__', ())):
        return
    found.add_note(f'{MARK}{row.cause} {row.remedy} ({row.name})')
    LOG.error('KVML501 %(cause)s %(remedy)s (%(name)s; %(who)s says: '
              '%(said)s)',
              {'who': who, 'cause': row.cause, 'remedy': row.remedy,
               'name': row.name, 'said': errors.clean(
                   errors.command_said(found) or found)},
              subject=row.name,
              **({} if instance is None else {'instance': instance}))


def explains_libvirt_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a driver's method: what it raises is explained."""
    @functools.wraps(method)
    def explaining(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as e:
            explain_libvirt_error(e, next(
                (value for value in (*args, *kwargs.values())
                 if isinstance(value, objects.Instance)), None))
            raise
    # Nova's tests compare signatures, and look behind no decorator.
    explaining.__signature__ = inspect.signature(  # type: ignore[attr-defined]
        method)
    return explaining


class _NotStarted(BaseException):
    """Ends Nova's loop of connection events, which catches Exception."""


@contextlib.contextmanager
def process_ends_unless_started(host: Any) -> Iterator[None]:
    """Make sure that nova-compute ends where its driver does not start.

    On threads (Nova 33 and later) Nova runs an endless loop in a pool that the
    interpreter waits for at its exit. So nova-compute would log why it does
    not start and stay there, and what watches it would take it for started.

    :param host: nova.virt.libvirt.host.Host
    """
    try:
        yield
    except Exception:
        # On eventlet, and all there was before, nothing is waited for.
        on_threads = getattr(utils, 'concurrency_mode_threading', bool)
        queue = getattr(host, '_conn_event_handler_queue', None)
        if on_threads():
            if queue is not None:
                queue.put(_end_loop)
        else:
            _fail_at_exit()
        raise


def _fail_at_exit() -> None:
    """Have this process end with the exit code 1.

    On eventlet (Nova 31 to 33, and 34 where it is asked for) oslo.service's
    launcher makes a status of the exception, nova.service.wait() throws the
    status away, and nova-compute ends with 0: systemd's Restart=on-failure
    takes that for success. On threads the exception itself ends the process,
    with 1.

    The launcher stops its services and then waits for them, which is the
    last that it does. It does so still, and after that SystemExit takes the
    way out that the end of main() would have taken: no clean-up of Nova's or
    of the interpreter's is skipped, as os._exit() would.
    """
    # There is none in a test or in `guest boot`.
    launcher = getattr(sys.modules.get('nova.service'), '_launcher', None)
    services: Any = getattr(launcher, 'services', None)
    wait = getattr(services, 'wait', None)
    if wait is None:
        return

    def wait_and_fail() -> None:
        wait()
        raise SystemExit(1)

    services.wait = wait_and_fail


def _end_loop() -> None:
    raise _NotStarted


_CEPH = 'KVM6'
"""How the codes about disks in Ceph begin. They are read at the start alone,
and their FAIL keeps no service from starting: guests that boot from a volume
may run, and who else is to stop, delete or move away those that are here?"""


class HostCheck:
    """Whether this host can run guests, checked again and again.

    :param driver: nova.virt.libvirt.driver.LibvirtDriver; its service is
        disabled while it cannot
    :param seen: told the results of each look, and what prevents guests from
        running, a sentence or ''
    """

    def __init__(self, driver: Any,
                 seen: Callable[[list[verdict.CheckResult], str], None]
                 ) -> None:
        self._driver = driver
        self._seen = seen
        self._facts: model.HostFacts | None = None
        # What reads the host, while the checks have not run.
        self._due: Callable[[], model.HostFacts] | None = None
        self._fault = ''
        # A service that was disabled before it was started again is enabled
        # by Nova when libvirt answers, mostly before we look.
        self._may_be_disabled = True

    def at_start(self, told: capabilities.DomainCapabilities | None = None,
                 seconds: float = 0) -> None:
        """Check everything, say it, and refuse to start on a FAIL.

        Comes after Nova's own options have been told what this driver's
        mean. Where it is known that nothing refuses, the first periodic
        update checks instead.

        What is wrong with the directory of instances alone does not refuse:
        :meth:`again` disables scheduling for as long as it is so.

        Nor does what is wrong with Ceph.

        :param told: what libvirt has told that guests can have
        :param seconds: what that has taken. A libvirt that is slow has a
            reason, which is said before Nova asks it more
        :raises errors.HostError: no guest can run as nova.conf asks; not for
            ``host_check = warn``
        """
        self._facts, self._due = None, None
        if CONF.kvm_ext.host_check == 'off':
            return
        wanted = options.HostOptions.from_conf(CONF)
        virt_type = CONF.libvirt.virt_type
        wanted = dataclasses.replace(
            # The paths are meant, whether a file or a default says so.
            wanted, files=wanted.files or ('nova.conf',),
            # What `auto` has become.
            settings=wanted.settings and dataclasses.replace(
                wanted.settings, virt_type=virt_type))
        # A guest tells whether KVM works, once in a boot of this host.
        # Software needs no such proof.
        cache_dir = CONF.state_path if virt_type == 'kvm' else None
        connect = self._driver._host.get_connection
        early = facts.read_early(wanted, told, connect, cache_dir)
        self._due = functools.partial(
            facts.read_host, wanted, uri=self._driver._host._uri,
            connect=connect, cache_dir=cache_dir, service=True,
            tried=early.probe)
        if seconds <= PROMPT and checks_early.settled(
                early, helper=_runs_helper()):
            return
        failed = [result for result in self._check(self._due())
                  if result.result == verdict.FAIL and
                  result.code not in _DISABLES and
                  not result.code.startswith(_CEPH)]
        if failed and CONF.kvm_ext.host_check == 'enforce':
            more = (f' (and {len(failed) - 1} more)' if len(failed) > 1
                    else '')
            raise errors.HostError(
                f'This host cannot run guests: {_sentence(failed[0])}{more}',
                'nova-kvm-ext host check shows all; [kvm_ext] host_check = '
                'warn starts the service nevertheless.')

    def finish(self) -> None:
        """Check everything and say it, if that is left to do.

        It stays so for as long as libvirt does not answer: Nova disables the
        service itself then, and what libvirt would tell is not asked again.
        """
        found = self._due and self._due()
        if found and not found.libvirt.error:
            self._fault = _first_fault(self._check(found))

    def _check(self, found: model.HostFacts) -> list[verdict.CheckResult]:
        """Check everything, and say it."""
        self._facts, self._due = found, None
        results = self._results(found)
        self._seen(results, _first_fault(results))
        for result in results:
            if result.result in (verdict.WARN, verdict.FAIL):
                (LOG.error if result.result == verdict.FAIL else LOG.warning)(
                    '%s', _sentence(result))
        LOG.info('Host check: %s.', ', '.join(
            f'{sum(found.result == kind for found in results)} {kind}'
            for kind in (verdict.PASS, verdict.WARN, verdict.FAIL,
                         verdict.SKIP)))
        return results

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Around Nova's periodic look at what this host has.

        Files only, a few hundredths of a second: a libvirt whose QEMU may
        not open /dev/kvm takes minutes over an answer. The service is
        disabled before Nova asks libvirt, for the same reason, and enabled
        only after libvirt has answered.

        The first time everything is checked that :meth:`at_start` left.
        """
        late = self._due is not None
        self.finish()
        if self._facts is None:
            yield
            return
        fault = self._fault if late else self._look()
        if fault != self._fault:
            if fault:
                LOG.error('%s', fault)
            else:
                LOG.info('Host check: repaired: %s', self._fault)
            self._fault = fault
        enforced = CONF.kvm_ext.host_check == 'enforce'
        if fault and enforced:
            self._may_be_disabled = True
            # Each time, not only once: Nova enables the service when libvirt
            # comes back, and knows nothing of our reason.
            self._driver._set_host_enabled(
                False, disable_reason=(MARK + fault)[
                    :_LONGEST_REASON - len(libvirt_driver.DISABLE_PREFIX)])
        yield
        if not fault and enforced and self._may_be_disabled:
            self._enable()

    def _look(self) -> str:
        """What prevents guests from running now, or ''."""
        assert self._facts is not None
        results = [result for result in
                   self._results(facts.read_again(self._facts))
                   if not result.code.startswith(_CEPH)]
        fault = _first_fault(results)
        self._seen(results, fault)
        return fault

    @staticmethod
    def _results(found: model.HostFacts) -> list[verdict.CheckResult]:
        """What the checks say that matter to a running service."""
        return [result for result in runner.run(found)
                if result.code not in _NO_MATTER and
                (_runs_helper() or result.code != _PRIVSEP)]

    def _enable(self) -> None:
        """Enable the service if it was us who disabled it.

        Nova's own method would enable what Nova disabled too.
        """
        try:
            service = objects.Service.get_by_compute_host(
                nova_context.get_admin_context(), CONF.host)
        except exception.ComputeHostNotFound:
            # It registers in a moment; until then nothing is disabled.
            return
        if service.disabled and (service.disabled_reason or '').startswith(
                libvirt_driver.DISABLE_PREFIX + MARK):
            self._driver._set_host_enabled(True)
        self._may_be_disabled = False


def _runs_helper() -> bool:
    """Whether Nova starts oslo.privsep's helper.

    `guest boot` does not: it is root.
    """
    return bool(nova.privsep.sys_admin_pctxt.client_mode)


def _first_fault(results: list[verdict.CheckResult]) -> str:
    """What prevents guests from running, or ''."""
    return next((_sentence(result) for result in results
                 if result.result == verdict.FAIL and
                 not result.code.startswith(_CEPH)), '')


def _sentence(result: verdict.CheckResult) -> str:
    """A result as one line of a log."""
    remedy = f' Remedy: {result.remedy}' if result.remedy else ''
    return (f'Host check {result.code} {result.title}: {result.details}.'
            f'{remedy}')
