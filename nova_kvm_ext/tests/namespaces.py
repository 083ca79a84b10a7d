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

"""What the test beds of this package share to make namespaces.

A bed is a PID namespace whose first process waits on a pipe from its maker.
When the maker ends, however it ends, the pipe closes, the first process exits,
and the kernel kills all in the bed and drops its mounts. A directory is what
can outlive a killed maker: it is locked while it is used, so the next maker
knows which ones to remove.

Only the standard library is needed, so that a machine on which nothing is
installed yet can make a bed with its own Python.
"""

from collections.abc import Sequence
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

BASE = pathlib.Path('/var/tmp')
"""Where beds have their directories.

Not tempfile's directory: tests like to point that at one which only root can
enter, and it may be too deep for the 108 bytes of a socket's path.
"""

# Otherwise mount would make and use the host's /run/mount.
MOUNT = 'mount --no-mtab'

# The first process of a PID namespace inherits each process there that became
# a daemon. Ignoring SIGCHLD has the kernel reap them: libvirt takes a zombie
# for a QEMU that does not want to die, and destroying a domain would fail.
_FIRST_PROCESS = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print('ready', flush=True)
if sys.stdin.readline() == 'stay\\n':
    while True:
        signal.pause()
"""


def unshare(*kinds: str, propagation: str = 'slave') -> list[str]:
    """The start of a command that runs the rest in namespaces of its own.

    :param kinds: those beside mount and PID, as options of unshare(1)
    :param propagation: whether mounts that the host makes later are seen
        inside ('slave', where the host shares its mounts, as under systemd;
        unmounts are seen as well, so nothing outside stays busy) or not
        ('private'). None travels outwards.
    """
    return ['unshare', '--mount', '--propagation', propagation, '--pid',
            '--fork', '--mount-proc', '--kill-child', *kinds]


def start(
    command: Sequence[str], lock: int, name: str = '',
) -> subprocess.Popen[str]:
    """Start the first process of a bed.

    A line on its standard input ends it, or the end of that; the line "stay"
    has it live on after its maker.

    :param command: of :func:`unshare`
    :param lock: the directory's (:func:`lock`). The processes hold it too, so
        the directory is in use until they have ended.
    :param name: what tells the processes from those of other beds
    :raises OSError: there was no permission; str() says what unshare said
    """
    first = subprocess.Popen(
        [*command, sys.executable, '-I', '-S', '-c', _FIRST_PROCESS, name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, pass_fds=[lock],
        start_new_session=True)
    answer = first.stdout.readline()
    if answer != 'ready\n':
        first.communicate()
        raise OSError(answer.strip())
    return first


def enter(pid: int, *kinds: str) -> list[str]:
    """The start of a command that runs the rest in a bed.

    :param pid: of what :func:`start` returned
    :param kinds: the namespaces beside mount and PID, as in /proc/PID/ns
    """
    proc = f'/proc/{pid}/ns'
    return ['nsenter', f'--mount={proc}/mnt',
            *(f'--{kind}={proc}/{kind}' for kind in kinds),
            f'--pid={proc}/pid_for_children']


def kvm_node(directory: pathlib.Path, mode: int = 0o660,
             group: str = 'kvm') -> list[str]:
    """The commands that put a /dev/kvm in place which is the bed's alone.

    The mode is by default that of udev's rule on a healthy host. Where there
    is no udev the node is root's alone, and libvirt takes 45 s over each start
    of a guest.

    :param directory: an empty one of the bed; it is covered, because not every
        file system may have device nodes
    """
    node = directory / 'kvm'
    return [
        f'{MOUNT} -t tmpfs -o mode=0755 none {directory}',
        f'mknod --mode={mode:04o} {node} c 10 232',
        f'chown :{group} {node}',
        f'{MOUNT} --bind {node} /dev/kvm']


def lock(path: pathlib.Path, flags: int = 0) -> int:
    """Lock a directory; returns the descriptor that holds the lock.

    :param flags: fcntl.LOCK_NB not to wait
    :raises OSError: it is locked already, or no directory
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def make_directory(prefix: str) -> tuple[pathlib.Path, int]:
    """Make the directory of a bed, and remove those that were left behind.

    :param prefix: of its name, the same for all beds of a kind
    :returns: the directory, for its owner alone, and its lock
    """
    base = lock(BASE)
    try:
        _remove_stale(prefix)
        path = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=BASE))
        return path, lock(path)
    finally:
        os.close(base)


def _remove_stale(prefix: str) -> None:
    """Remove the directories of makers that were killed."""
    for path in BASE.glob(f'{prefix}*'):
        try:
            held = lock(path, fcntl.LOCK_NB)
        except OSError:
            continue  # in use, or none of ours
        try:
            shutil.rmtree(path)
        finally:
            os.close(held)
