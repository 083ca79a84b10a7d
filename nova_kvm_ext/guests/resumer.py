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

"""A process that resumes guests, so that nova-compute waits for no QEMU.

libvirt has no time-out for its commands to a QEMU: a call about a guest never
returns if the guest's QEMU hangs, or the file system of its disk. So
nova-compute makes no such call. :class:`Round` starts a process, which checks
each guest in a thread, resumes those that may run again and writes a line for
each. The process ends when it is done, and when nova-compute ends.
"""

from collections.abc import Iterable
from concurrent import futures
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import libvirt

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.guests import pauses
from nova_kvm_ext.guests import reasons
from nova_kvm_ext.guests import resume

LIFETIME = 45
"""Seconds that the process lives at most: nova-compute starts one a minute,
and never a second one."""

AT_ONCE = 5
"""Guests that are checked at the same time, through a connection each."""

MOST_STUCK = 10
"""Guests whose QEMU does not answer, from which on no other is asked. Each may
hold one of libvirtd's twenty workers (max_workers) for good, and nova-compute
needs some."""

MOST_GUESTS = 500
"""Guests of one round. Those of a host with more come with the next."""

EXPLAINED_IN = 3.0
"""Seconds that a command waits for what has paused guests."""

_POLL = 0.05

_TRIES = 3
"""How often, a second apart, a QEMU is checked that is busy: Nova and
monitoring ask for statistics, which takes milliseconds."""

_CONTROL_OCCUPIED = 2
"""VIR_DOMAIN_CONTROL_OCCUPIED of virDomainControlState."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A guest to look at.

    :ivar resume: whether it may be resumed at all; Nova or an operator, or
        the time since the last resume, may have something against it
    """

    uuid: str
    resume: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What happened to a guest.

    :ivar paused: whether an I/O error has it paused, or had; then there is
        more
    :ivar pause: with the paths of the host
    :ivar words: of the pause, for the log
    :ivar cause: of the pause, as reasons.Cause has it
    :ivar disks: their targets
    :ivar since: ISO 8601
    :ivar verdict: of resume.Verdict: resume, why and full
    :ivar resumed: monotonic time at which that was tried, None if it was not
    :ivar problem: of libvirt, which did not do it then
    """

    uuid: str
    paused: bool = False
    words: str = ''
    cause: str = ''
    disks: tuple[str, ...] = ()
    since: str | None = None
    may: bool | None = False
    why: str = ''
    full: bool = False
    resumed: float | None = None
    problem: str = ''


class Round:
    """The process, seen from the one that starts it.

    Nothing here waits, but :meth:`cut`.

    :param uri: of libvirt
    """

    def __init__(self, uri: str, jobs: Iterable[Job]) -> None:
        self.jobs = {job.uuid: job for job in list(jobs)[:MOST_GUESTS]}
        self._read = 0
        # A file, which is never full and never waited for, whatever eventlet
        # has made of os.read.
        self._answers = tempfile.TemporaryFile()
        try:
            # -P: what is installed, not what lies in this directory.
            self._process = subprocess.Popen(
                [sys.executable, '-P', '-m', __name__, uri,
                 *(('+' if job.resume else '-') + job.uuid
                   for job in self.jobs.values())],
                stdin=subprocess.PIPE, stdout=self._answers.fileno(),
                stderr=subprocess.DEVNULL, start_new_session=True)
        except BaseException:
            self._answers.close()
            raise

    def over(self) -> bool:
        """Whether the process has ended, and is gone."""
        return self._process.poll() is not None

    def outcomes(self) -> list[Outcome]:
        """The answers that were not given out yet."""
        size = os.fstat(self._answers.fileno()).st_size
        text = os.pread(self._answers.fileno(), size - self._read, self._read)
        whole = text[:text.rfind(b'\n') + 1]
        self._read += len(whole)
        found = []
        for line in whole.splitlines():
            fields = json.loads(line)
            fields['disks'] = tuple(fields['disks'])
            found.append(Outcome(**fields))
        return found

    def has_answered(self, uuid: str) -> bool:
        """Whether the process is done with a guest; takes no answer away."""
        size = os.fstat(self._answers.fileno()).st_size
        return f'"uuid": "{uuid}"'.encode() in os.pread(
            self._answers.fileno(), size, 0)

    def kill(self) -> None:
        """End the process; what it has asked of libvirt may still happen."""
        self._process.kill()

    def close(self) -> None:
        """Give back what the process took; :meth:`over` was true."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._answers.close()

    def end(self) -> None:
        """End the process and give back what it took, whatever it does."""
        self.kill()
        # Else a zombie would stay until the next process is started.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self.close()


def explain(uri: str, uuids: Iterable[str], seconds: float = EXPLAINED_IN
            ) -> dict[str, Outcome]:
    """Look at guests that an I/O error paused, and resume none.

    :param uri: of libvirt
    :returns: by UUID; without those whose QEMU or file system does not answer
    """
    found: dict[str, Outcome] = {}
    under_way = Round(uri, [Job(uuid, False) for uuid in uuids])
    try:
        deadline = time.monotonic() + seconds
        while True:
            # Asked first: what was answered before the end is read after it.
            over = under_way.over() or time.monotonic() > deadline
            found |= {outcome.uuid: outcome
                      for outcome in under_way.outcomes() if outcome.paused}
            if over or len(found) == len(under_way.jobs):
                return found
            time.sleep(_POLL)
    finally:
        under_way.end()


# In the process.


def space_for(disk: reasons.Disk | None) -> resume.Space | None:
    """The space of a disk's file system.

    :returns: None where it cannot be checked: a block device and a network
        disk have none, and the file of a libvirt elsewhere is not here
    """
    if disk is None or disk.place is not reasons.Place.FILE or (
            not os.path.isabs(disk.source)):
        return None
    try:
        found = os.statvfs(disk.source)
    except OSError:
        return None
    # Not f_bfree: QEMU is no root on most hosts, and root's reserve (ext4 has
    # 5 %) is not for guests.
    return resume.Space(found.f_bavail * found.f_frsize,
                        found.f_blocks * found.f_frsize)


def look(domain: Any, job: Job) -> Outcome:
    """Check one guest, and resume it if it may run again."""
    pause = pauses.read(domain)
    for _ in range(_TRIES - 1):
        if pause is None or not pause.unknown:
            break
        time.sleep(1)
        pause = pauses.read(domain)
    if pause is None or pause.reason is not reasons.Reason.IO_ERROR:
        return Outcome(job.uuid)
    verdict = resume.decide(pause, {
        error.target: space_for(error.disk) for error in pause.disks})
    outcome = Outcome(
        job.uuid, paused=True, words=pause.words(paths=True),
        cause=pause.cause.value if pause.cause else '',
        disks=tuple(error.target for error in pause.disks),
        since=None if pause.since is None else pause.since.isoformat(),
        may=verdict.resume, why=verdict.why, full=verdict.full)
    if not job.resume or verdict.resume is False:
        return outcome
    # Another resume and pause in the meantime shows in the reason. A
    # migration or the like has a job, which libvirt does not interrupt.
    if pauses.reason_of(domain) is not reasons.Reason.IO_ERROR or (
            pauses.has_job(domain)):
        return dataclasses.replace(
            outcome, may=False, why='another operation is under way')
    problem = ''
    try:
        domain.resume()
    except Exception as e:
        # As where the lock of a disk is another's.
        if errors.libvirt_error_code(e) is None:
            raise
        problem = errors.clean(e) or 'it does not say why'
    return dataclasses.replace(
        outcome, resumed=time.monotonic(), problem=problem)


def _set_clock(domain: Any) -> None:
    """Set the guest's clock, as Nova does when it unpauses a guest.

    libvirt waits as long as for agents in general.
    """
    with contextlib.suppress(libvirt.libvirtError):
        if channel.connected(domain.XMLDesc(0)):
            now = time.time()
            domain.setTime({'seconds': int(now),
                            'nseconds': int(now % 1 * 10 ** 9)})


def _say(outcome: Outcome) -> None:
    # One write: threads do not come between each other.
    os.write(1, json.dumps(dataclasses.asdict(outcome)).encode() + b'\n')


def _stuck(connection: Any, jobs: Iterable[Job]) -> int:
    """How many of the guests have a QEMU that owes libvirt an answer."""
    count = 0
    for job in jobs:
        with contextlib.suppress(libvirt.libvirtError):
            state, _, _ = connection.lookupByUUIDString(
                job.uuid).controlInfo(0)
            count += state == _CONTROL_OCCUPIED
    return count


def run(uri: str, jobs: list[Job]) -> None:
    """Check all guests."""
    mine = threading.local()
    # Held until all guests wait for their turn.
    queued = threading.Lock()
    clocks: list[futures.Future[None]] = []

    def domain_of(job: Job) -> Any:
        if not hasattr(mine, 'connection'):
            mine.connection = libvirt.open(uri)
        return mine.connection.lookupByUUIDString(job.uuid)

    def one(job: Job) -> None:
        try:
            outcome = look(domain_of(job), job)
        except libvirt.libvirtError as e:
            outcome = Outcome(job.uuid, problem=errors.clean(e))
        _say(outcome)
        if outcome.resumed is not None and not outcome.problem:
            # After the others: libvirt waits five seconds for an agent that
            # does not answer.
            with queued:
                clocks.append(pool.submit(clock, job))

    def clock(job: Job) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            _set_clock(domain_of(job))

    with contextlib.closing(libvirt.open(uri)) as connection:
        room = MOST_STUCK - _stuck(connection, jobs)
    if room <= 0:
        return
    with futures.ThreadPoolExecutor(min(AT_ONCE, room)) as pool:
        with queued:
            looks = [pool.submit(one, job) for job in jobs]
        for looked in looks:
            looked.result()
        for set_right in clocks:
            set_right.result()


def _end_with_the_service() -> None:
    """End when nova-compute does, or when time is up."""
    def end() -> None:
        # The end of standard input is that of the process that started this.
        sys.stdin.buffer.read()
        os._exit(1)

    def end_in_time() -> None:
        time.sleep(LIFETIME)
        os._exit(1)

    for target in (end, end_in_time):
        threading.Thread(target=target, daemon=True).start()


def main(argv: list[str]) -> None:
    _end_with_the_service()
    libvirt.registerErrorHandler(lambda *ignored: None, None)
    uri, *guests = argv
    run(uri, [Job(guest[1:], guest[0] == '+') for guest in guests])


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    finally:
        # A thread that hangs in libvirt would be waited for.
        os._exit(0)
