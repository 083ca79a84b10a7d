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

"""The guide's script for consistent backups, with programs that are none."""

import os
import pathlib
import subprocess

import ddt
import fixtures
from oslotest import base

_SCRIPT = (pathlib.Path(__file__).parents[3] / 'doc' / 'source' / 'admin' /
           'consistent-backup.sh')

# Frozen until it is told to end, as long as the file is there.
_FREEZE = '''
trap 'cat stood; echo thawed >> log; exit 143' TERM
echo "freeze $*" >> log
[ ! -e refuse ] || { echo 'error: the agent does not answer' >&2; exit 1; }
echo '2 guests stay frozen for 120 s from now on.' >&2
while [ ! -e over ]; do sleep 0.02; done
cat stood
echo over >> log
'''
_OPENSTACK = '''
echo "$OS_VOLUME_API_VERSION $*" >> log
volume=${*: -1}
case "$*" in
*create*)
    [ "$(cat fails 2> /dev/null)" != "create $volume" ] || exit 1
    echo "id-of-$volume" ;;
*show*)
    [ "$(cat fails 2> /dev/null)" != "show $volume" ] || exit 1
    if [ -e hangs ]; then echo creating
    elif [ -e "$volume-seen" ]; then cat state
    else touch "$volume-seen"; echo creating; fi ;;
*delete*)
    # As Cinder does with a snapshot that is being made.
    if [ -s undeletable ]; then
        sed -i 1d undeletable
        echo 'Invalid snapshot: its status is creating' >&2
        exit 1
    fi ;;
esac
'''


@ddt.ddt
class BackupScriptTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        for name, text in (('nova-kvm-ext', _FREEZE),
                           ('openstack', _OPENSTACK)):
            program = self.directory / name
            program.write_text(f'#!/usr/bin/env bash\n{text}')
            program.chmod(0o755)
        self.write('stood', 'True\nTrue\n')
        self.write('state', 'available\n')
        self.write('log', '')

    def write(self, name: str, text: str = '') -> None:
        (self.directory / name).write_text(text)

    def run_script(self, *words: str, script: str | None = None
                   ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ['bash', script or str(_SCRIPT),
             *(words or ('today', 'db', 'replica', '--', 'a', 'b'))],
            cwd=self.directory, text=True, capture_output=True, timeout=60,
            env=os.environ | {
                'PATH': f'{self.directory}:{os.environ["PATH"]}',
                'TMPDIR': str(self.directory)})

    def log(self) -> str:
        return (self.directory / 'log').read_text()

    def check_failed(self, reason: str, made: str = '',
                     result: subprocess.CompletedProcess[str] | None = None
                     ) -> None:
        """Nothing of a backup stays, and no guest stays frozen."""
        result = result or self.run_script()
        self.assertEqual((1, ''), (result.returncode, result.stdout),
                         result.stderr)
        self.assertIn(f'No backup was made: {reason}', result.stderr)
        self.assertEqual(made.split(), [
            line.split()[-1] for line in self.log().splitlines()
            if ' delete ' in line])
        self.assertEqual([], list(self.directory.glob('tmp.*')))

    def test_success(self):
        result = self.run_script()
        self.assertEqual((0, 'id-of-today-a\nid-of-today-b\n'),
                         (result.returncode, result.stdout), result.stderr)
        self.assertIn('freeze agent freeze db replica --for 120', self.log())
        self.assertIn('3.66 volume snapshot create --volume a', self.log())
        self.assertNotIn('delete', self.log())
        # Thawed when each snapshot was seen to be made.
        self.assertTrue(self.log().endswith('thawed\n'), self.log())
        self.assertEqual([], list(self.directory.glob('tmp.*')))

    def test_guest_that_cannot_be_frozen(self):
        self.write('refuse')
        self.check_failed('not all guests can be frozen')
        self.assertNotIn('create', self.log())

    @ddt.data(('create today-a', ''), ('create today-b', 'id-of-today-a'))
    @ddt.unpack
    def test_volume_without_a_snapshot(self, which, made):
        self.write('fails', which)
        self.check_failed('there is no snapshot of volume ' + which[-1], made)
        self.assertIn('thawed', self.log())

    def test_snapshot_that_fails(self):
        self.write('state', 'error')
        self.check_failed('the state of id-of-today-b is error',
                          'id-of-today-a id-of-today-b')

    def test_snapshot_that_cannot_be_seen(self):
        self.write('fails', 'show id-of-today-a')
        self.check_failed('the state of id-of-today-a is not known',
                          'id-of-today-a id-of-today-b')

    @ddt.data('True\nFalse\n', 'True\n\n', 'False\n', '')
    def test_guest_that_did_not_stay_frozen(self, stood):
        self.write('stood', stood)
        self.check_failed('a guest was not frozen until the end',
                          'id-of-today-a id-of-today-b')

    def test_freeze_that_ends_meanwhile(self):
        """The snapshots may have been made after that."""
        text = _SCRIPT.read_text().replace(
            'bad=\n', 'bad=\ntouch over; wait "$freeze"\n')
        self.write('script', text)
        self.check_failed('the guests did not stay frozen',
                          'id-of-today-a id-of-today-b', self.run_script(
                              script='script'))

    def test_snapshots_that_take_too_long(self):
        self.write('hangs')
        self.write('script', _SCRIPT.read_text().replace(
            'limit=120', 'limit=1'))
        self.check_failed('the snapshots were not made within 1 s',
                          'id-of-today-a id-of-today-b', self.run_script(
                              script='script'))
        self.assertIn('thawed', self.log())

    def quickly(self) -> str:
        """The script, which waits no three seconds between two tries."""
        self.write('script', _SCRIPT.read_text().replace(
            'sleep 3', 'sleep 0').replace('limit=120', 'limit=1'))
        return 'script'

    def test_snapshots_that_are_still_being_made(self):
        """Cinder refuses to delete them until they are made."""
        self.write('hangs')
        self.write('undeletable', 'x\n' * 3)
        result = self.run_script(script=self.quickly())
        self.check_failed(
            'the snapshots were not made within 1 s',
            'id-of-today-a ' * 4 + 'id-of-today-b', result)
        self.assertNotIn('Delete the snapshot', result.stderr)

    def test_snapshots_that_cannot_be_deleted(self):
        """The user is told which ones are left."""
        self.write('hangs')
        self.write('undeletable', 'x\n' * 20)
        result = self.run_script(script=self.quickly())
        self.assertEqual(1, result.returncode)
        self.assertIn('its status is creating\nDelete the snapshot '
                      'id-of-today-a: it is not consistent.', result.stderr)
        self.assertNotIn('snapshot id-of-today-b', result.stderr)
        self.assertIn('snapshot delete id-of-today-b', self.log())

    def test_interrupted(self):
        self.write('script', _SCRIPT.read_text().replace(
            'bad=\n', 'bad=\nsnapshots=(one)\nkill -TERM $$\nsleep 5\n'))
        result = self.run_script(script='script')
        self.assertNotEqual(0, result.returncode)
        self.assertIn('No backup was made: it was interrupted', result.stderr)
        self.assertIn('snapshot delete one', self.log())

    @ddt.data((), ('today',), ('today', 'db', 'a', 'b'), ('today', '--', 'a'))
    def test_usage(self, words):
        result = self.run_script(*words, '', script=str(_SCRIPT)) if (
            not words) else self.run_script(*words)
        self.assertEqual(2, result.returncode)
        self.assertIn('Usage: consistent-backup.sh', result.stderr)
        self.assertEqual('', self.log())
