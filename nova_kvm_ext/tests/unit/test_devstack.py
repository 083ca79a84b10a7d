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

"""The plugin of devstack, in bash, through every phase that devstack has.

What devstack promises its plugins (functions, variables, services) is put in
by stand-ins that do what it says and record their calls. Nothing is
installed and no service is asked; all files are in a temporary directory.
"""

import configparser
import itertools
import os
import pathlib
import subprocess
import sys

import ddt
import fixtures
import nova
from nova import conf as nova_conf
from oslo_config import cfg
import testtools

from nova_kvm_ext import conf
from nova_kvm_ext.settings import Settings

_DEVSTACK = pathlib.Path(__file__).parents[3] / 'devstack'

_STACK = tuple(f'stack {phase}' for phase in (
    'pre-install', 'install', 'post-config', 'extra', 'test-config'))

_ALL_IN_ONE = 'g-api,key,mysql,n-api,n-cpu,n-sch,rabbit,tempest'

# As devstack has it when the plugin comes to it, with a comment that is to
# stay one and a group behind those that are changed.
_NOVA_CONF = """
[DEFAULT]
compute_driver = libvirt.LibvirtDriver
# This is the driver's host.
my_ip = 192.0.2.1

[libvirt]
virt_type = qemu
cpu_mode = custom
cpu_model = Nehalem
use_usb_tablet = False

[workarounds]
enable_numa_live_migration = True
"""

_FUNCTIONS = r'''
set -o errexit
set -o nounset
set -o pipefail
function record { printf '%s\n' "$*" >> "$CALLS"; }
function die { shift; echo "$*" >&2; exit 1; }
function echo_summary { :; }
function trueorfalse {
    local value=${!2:-$1}
    case ${value,,} in
    true|yes|1) echo True ;;
    *) echo False ;;
    esac
}
function is_service_enabled {
    local wanted
    for wanted in "$@"; do
        [[ ,$ENABLED_SERVICES, == *",$wanted,"* ]] && return 0
        [[ $wanted == nova && ,$ENABLED_SERVICES == *,n-* ]] && return 0
    done
    return 1
}
function setup_develop { record setup_develop "$@"; }
function pip_uninstall { record "pip_uninstall $* from ${PIP_VIRTUAL_ENV:-}"; }
function sudo { record sudo "${1##*/}" "${@:2}"; "$@"; }
function openstack { record openstack "$@"; }
for name in iniget iniset inicomment iniuncomment inidelete; do
    eval "function $name { edit_ini $name \"\$@\"; }"
done
unset name
function edit_ini {
    local text
    if [[ $1 == iniset ]] && ! grep -qxF "[$3]" "$2" 2> /dev/null; then
        printf '\n[%s]\n' "$3" >> "$2"
    fi
    text=$(awk -v edit="$1" -v header="[$3]" -v option="$4" -v value="${5:-}" '
        /^\[/ { here = $0 == header }
        { line[NR] = $0 }
        here && $0 ~ "^" option "[ \t]*=" { set[NR] = found = 1 }
        here && $0 ~ "^[ \t]*#[ \t]*" option "[ \t]*=" { off[NR] = 1 }
        END {
            for (n = 1; n <= NR; n++) {
                text = line[n]
                if (set[n] && edit == "inidelete" ||
                        !set[n] && edit == "iniget") continue
                if (set[n] && edit == "iniget") sub(/^[^=]*=[ \t]*/, "", text)
                if (set[n] && edit == "inicomment") text = "#" text
                if (set[n] && edit == "iniset") text = option " = " value
                if (off[n] && edit == "iniuncomment") sub(/^[ \t#]*/, "", text)
                print text
                if (text == header && edit == "iniset" && !found)
                    print option " = " value
            }
        }' "$2")
    if [[ $1 == iniget ]]; then
        echo "$text"
    else
        echo "$text" > "$2"
    fi
}
'''

# The image takes root, tools and time; that it is made for real is tested in
# tests/functional.
_PYTHON = r'''#!/usr/bin/env bash
[[ $* != *purelib* ]] || exec echo "$SITE"
[[ $1 != -c ]] || exec "$REAL_PYTHON" "$@"
script=$(cat)
if [[ $script != *testguest* ]]; then
    exec "$REAL_PYTHON" "$@" <<< "$script"
fi
[[ -z ${BUILD_ERROR:-} ]] || { echo "$BUILD_ERROR" >&2; exit 1; }
mkdir -p "${@: -1}"
touch "${@: -1}/image.raw"
echo "${@: -1}/image.raw"
'''

_COMMAND = r'''#!/usr/bin/env bash
exit ${HOST_CHECK:-0}
'''


class PluginTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.nova_conf = self.dir / 'etc/nova.conf'
        self.cpu_conf = self.dir / 'etc/nova-cpu.conf'
        self.tempest_conf = self.dir / 'etc/tempest.conf'
        self.calls = self.dir / 'calls'
        for name in 'bin', 'etc', 'data/nova', 'site':
            (self.dir / name).mkdir(parents=True)
        self.nova_conf.write_text(_NOVA_CONF)
        self._write('bin/python', _PYTHON)
        self._write('bin/nova-kvm-ext', _COMMAND)
        self.variables = {
            'CALLS': self.calls,
            'DATA_DIR': self.dir / 'data',
            'ENABLED_SERVICES': _ALL_IN_ONE,
            'NOVA_CONF': self.nova_conf,
            'NOVA_CPU_CONF': self.cpu_conf,
            # Where Nova really is: that is looked for.
            'NOVA_DIR': pathlib.Path(nova.__file__).parents[1],
            'NOVA_STATE_PATH': self.dir / 'data/nova',
            'PATH': f'{self.dir}/bin:{os.environ["PATH"]}',
            'PYTHON': self.dir / 'bin/python',
            'REAL_PYTHON': sys.executable,
            'REGION_NAME': 'RegionOne',
            'SITE': self.dir / 'site',
            'TEMPEST_CONFIG': self.tempest_conf,
            'VIRT_DRIVER': 'libvirt',
        }

    def _write(self, name, text):
        (self.dir / name).write_text(text)
        (self.dir / name).chmod(0o755)

    def _run(self, *phases, **variables):
        """What devstack does: settings, then the plugin for each phase."""
        script = '\n'.join([
            _FUNCTIONS, f'source {_DEVSTACK}/settings', 'set -o xtrace',
            *(f'source {_DEVSTACK}/plugin.sh {phase}' for phase in phases),
            # The caller's shell is as it was.
            'set +o', 'echo done'])
        return subprocess.run(
            ['bash', '-c', script], capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=120, env={
                name: str(value)
                for name, value in (self.variables | variables).items()})

    def devstack(self, *phases, **variables):
        """Run phases and return what was called meanwhile."""
        self.calls.write_text('')
        result = self._run(*phases, **variables)
        self.assertEqual(0, result.returncode, result.stderr)
        self.assertTrue(result.stdout.endswith('done\n'))
        self.assertIn('set -o xtrace\n', result.stdout)
        self.assertIn('set -o errexit\n', result.stdout)
        return self.calls.read_text().splitlines()

    def refused(self, *phases, **variables):
        """Run phases of which one dies; return its last words."""
        result = self._run(*phases, **variables)
        self.assertEqual(1, result.returncode, result.stderr)
        self.assertNotIn('done\n', result.stdout)
        return ' '.join(line for line in result.stderr.splitlines()
                        if not line.startswith('+'))

    def options(self, path=None):
        """A file as {group: {option: value}}."""
        # Strict: an option twice in a group is an error.
        parser = configparser.ConfigParser(
            default_section=None, interpolation=None)
        parser.read_string((path or self.nova_conf).read_text())
        return {group: dict(parser[group]) for group in parser.sections()}


@ddt.ddt
class PhasesTest(PluginTestCase):

    def test_stack(self):
        root = _DEVSTACK.parent
        path_file = self.dir / 'site/nova-kvm-ext-devstack.pth'
        self.assertEqual([
            f'sudo tee {path_file}',
            f'setup_develop -bindep=devstack {root}',
            f'sudo nova-kvm-ext host check --config-file {self.nova_conf}',
            f'sudo python -P -B - {self.dir}/data/nova-kvm-ext',
            'openstack --os-cloud devstack-admin --os-region-name RegionOne '
            'image create --public --disk-format raw --container-format bare '
            '--min-ram 256 --min-disk 1 --property hw_qemu_guest_agent=yes '
            f'--file {self.dir}/data/nova-kvm-ext/image.raw '
            'nova-kvm-ext-agent',
        ], self.devstack(*_STACK))
        self.assertEqual(f'{self.variables["NOVA_DIR"]}\n',
                         path_file.read_text())
        self.assertEqual(
            {'compute-feature-enabled': {'stable_rescue': 'True'}},
            self.options(self.tempest_conf))

    def test_nova_conf(self):
        expected = self.options()
        expected['DEFAULT']['compute_driver'] = 'kvm_ext.KVMDriver'
        self.devstack(*_STACK)
        # Nothing else: what [libvirt] says counts.
        self.assertEqual(expected, self.options())

    def test_without_nova(self):
        self.assertEqual([], self.devstack(
            *_STACK, 'unstack', 'clean', ENABLED_SERVICES='g-api,key,tempest'))
        self.assertEqual(_NOVA_CONF, self.nova_conf.read_text())
        self.assertFalse(self.tempest_conf.exists())

    def test_controller(self):
        calls = self.devstack(*_STACK, ENABLED_SERVICES='g-api,n-api')
        self.assertEqual(
            ['sudo', 'setup_develop', 'sudo', 'openstack'],
            [call.partition(' ')[0] for call in calls])
        self.assertNotIn('host check', ' '.join(calls))
        self.assertEqual(_NOVA_CONF, self.nova_conf.read_text())

    def test_compute(self):
        calls = self.devstack(*_STACK, ENABLED_SERVICES='n-cpu')
        self.assertEqual(
            ['sudo', 'setup_develop', 'sudo'],
            [call.partition(' ')[0] for call in calls])
        self.assertEqual('kvm_ext.KVMDriver',
                         self.options()['DEFAULT']['compute_driver'])

    def test_live_migration(self):
        self.devstack(*_STACK, LIVE_MIGRATION_AVAILABLE='true')
        self.assertEqual(
            {'compute-feature-enabled': {
                'stable_rescue': 'True', 'shelve_migrate': 'True',
                'volume_backed_live_migration': 'True'}},
            self.options(self.tempest_conf))

    def test_image_settings(self):
        calls = self.devstack(*_STACK, KVM_EXT_AGENT_IMAGE_NAME='my image')
        self.assertTrue(calls[-1].endswith(' my image'), calls)
        calls = self.devstack(*_STACK, KVM_EXT_AGENT_IMAGE='no')
        self.assertNotIn('openstack', ' '.join(calls))

    def test_no_image(self):
        words = self.refused(
            'stack test-config', BUILD_ERROR='install busybox-static')
        self.assertIn('install busybox-static', words)
        self.assertIn('KVM_EXT_AGENT_IMAGE=False makes no image', words)

    def test_other_virt_driver(self):
        words = self.refused('stack pre-install', VIRT_DRIVER='ironic')
        self.assertIn('VIRT_DRIVER=ironic: nova-kvm-ext needs libvirt', words)

    def test_old_python(self):
        self._write('bin/python', '#!/bin/sh\nexit 1\n')
        words = self.refused('stack pre-install')
        self.assertIn('needs Python 3.11 or newer', words)

    def test_nova_replaced(self):
        words = self.refused('stack install', NOVA_DIR=self.dir)
        self.assertIn(f'it is now {nova.__file__}. Clone {self.dir} with its '
                      f'tags', words)

    def test_broken_host(self):
        words = self.refused('stack post-config', HOST_CHECK=2)
        self.assertIn('No guest would run here', words)
        self.assertIn('KVM_EXT_HOST_CHECK=warn', words)

    @ddt.data('warn', 'off')
    def test_broken_host_allowed(self, choice):
        self.devstack('stack post-config', HOST_CHECK=2,
                      KVM_EXT_HOST_CHECK=choice)

    def test_host_with_warnings(self):
        self.devstack('stack post-config', HOST_CHECK=1)

    def test_defect_of_check(self):
        self.refused('stack post-config', HOST_CHECK=3)

    def test_no_command(self):
        (self.dir / 'bin/nova-kvm-ext').unlink()
        self.variables['PATH'] = f'{self.dir}/bin:/usr/bin:/bin'
        self.refused('stack post-config')


@ddt.ddt
class OptionsTest(PluginTestCase):

    def setUp(self):
        super().setUp()
        self.choices = {}
        for option in conf.list_opts()[0][1]:
            if choices := getattr(option.type, 'choices', None):
                self.choices[option.name] = list(choices)

    def test_settings_has_all(self):
        # Set to nothing, as local.conf does it by not setting it.
        result = self._run_settings()
        self.assertEqual(
            {f'KVM_EXT_{option.name.upper()}': ''
             for option in conf.list_opts()[0][1]} |
            {'KVM_EXT_AGENT_IMAGE': 'True',
             'KVM_EXT_AGENT_IMAGE_NAME': 'nova-kvm-ext-agent'}, result)

    def test_settings_can_be_overridden(self):
        names = set(self._run_settings())
        given = {name: f'value of {name}' for name in names}
        given['KVM_EXT_AGENT_IMAGE'] = 'False'
        self.variables |= given
        self.assertEqual(given, self._run_settings())

    def _run_settings(self):
        result = subprocess.run(
            ['bash', '-c', f'{_FUNCTIONS}\nsource {_DEVSTACK}/settings\n'
             'for name in ${!KVM_EXT_@}; do echo "$name=${!name}"; done'],
            capture_output=True, text=True, check=True, timeout=60,
            env={name: str(value) for name, value in self.variables.items()})
        return dict(line.split('=', 1) for line in result.stdout.splitlines())

    def test_all(self):
        values = {
            'virt_type': 'auto', 'cpu_mode': 'custom',
            'cpu_model': 'x86-64-v2', 'image_cpu_modes': 'custom, none',
            'image_cpu_models': 'x86-64-v2,Nehalem', 'keep_guest_cpu': 'True',
            'vhost_net': 'require', 'load_vhost_net': 'False',
            'max_vhost_queues': '8', 'guest_agent': 'always',
            'guest_agent_timeout': '20', 'host_check': 'warn',
            'image_max_virtual_gb': '100', 'migration_stalled': 'pause',
            'migration_stalled_allowed': 'wait,pause',
            'resume_io_paused': 'never'}
        self.assertEqual({option.name for option in conf.list_opts()[0][1]},
                         set(values))
        expected = self.options()
        expected['DEFAULT']['compute_driver'] = 'kvm_ext.KVMDriver'
        expected['kvm_ext'] = values
        # These would contradict.
        for name in 'virt_type', 'cpu_mode', 'cpu_model':
            del expected['libvirt'][name]
        self.devstack(*_STACK, **{
            f'KVM_EXT_{name.upper()}': value
            for name, value in values.items()})
        self.assertEqual(expected, self.options())
        settings = self._read_settings()
        self.assertEqual(('auto', 'custom', ('x86-64-v2',)), (
            settings.virt_type, settings.cpu_mode, settings.cpu_models))

    @ddt.data(
        ({}, ('qemu', 'custom', ('Nehalem',))),
        ({'KVM_EXT_VIRT_TYPE': 'kvm'}, ('kvm', 'custom', ('Nehalem',))),
        ({'KVM_EXT_CPU_MODE': 'maximum'}, ('qemu', 'maximum', ())),
        ({'KVM_EXT_CPU_MODEL': 'x86-64-v3'},
         ('qemu', 'custom', ('x86-64-v3',))),
    )
    @ddt.unpack
    def test_with_libvirt_group(self, given, expected):
        self.devstack(*_STACK, **given)
        settings = self._read_settings()
        self.assertEqual(expected, (
            settings.virt_type, settings.cpu_mode, settings.cpu_models))

    def _read_settings(self):
        """As the driver reads the file; it refuses what contradicts."""
        read = cfg.ConfigOpts()
        nova_conf.libvirt.register_opts(read)
        conf.register_opts(read)
        read(['--config-file', str(self.nova_conf)], project='nova')
        return Settings.from_conf(read)

    def test_wrong_choices(self):
        self.assertEqual({'virt_type', 'cpu_mode', 'vhost_net', 'guest_agent',
                          'host_check', 'migration_stalled',
                          'resume_io_paused'}, set(self.choices))
        wrong = [(name, 'foo') for name in self.choices]
        wrong += [('virt_type', value)
                  for value in ('kvm|qemu', 'KVM', 'kvm ', '.*')]
        for name, value in wrong:
            words = self.refused(
                'stack pre-install', **{f'KVM_EXT_{name.upper()}': value})
            self.assertEqual(
                f'KVM_EXT_{name.upper()}={value} in local.conf: it can be '
                f'{", ".join(self.choices[name])}.', words)

    def test_right_choices(self):
        for together in itertools.zip_longest(*self.choices.values()):
            self.devstack('stack pre-install', **{
                f'KVM_EXT_{name.upper()}': choice or ''
                for name, choice in zip(self.choices, together)})


class UndoTest(PluginTestCase):

    def _files(self):
        return sorted(str(path.relative_to(self.dir))
                      for path in self.dir.rglob('*'))

    def _lines(self, path):
        return [line for line in path.read_text().splitlines() if line]

    def _stack(self):
        self.devstack(
            *_STACK, KVM_EXT_VIRT_TYPE='auto', KVM_EXT_CPU_MODE='host-model',
            KVM_EXT_HOST_CHECK='warn')
        # As devstack starts nova-compute, with what local.conf has to say.
        text = self.nova_conf.read_text()
        self.assertIn('kvm_ext.KVMDriver', text)
        self.cpu_conf.write_text(
            text.replace('[kvm_ext]', '[kvm_ext]\nkeep_guest_cpu = True') +
            '[vnc]\nenabled = False\n')
        (self.dir / 'data/nova/kvm-ext-probe.json').write_text('{}')

    def test_unstack(self):
        self._stack()
        self.assertEqual([], self.devstack('unstack'))
        expected = [line for line in _NOVA_CONF.splitlines() if line]
        self.assertEqual(expected, self._lines(self.nova_conf))
        self.assertEqual([*expected, '[vnc]', 'enabled = False'],
                         self._lines(self.cpu_conf))

    def test_unstack_twice(self):
        self._stack()
        self.devstack('unstack')
        texts = self.nova_conf.read_text(), self.cpu_conf.read_text()
        self.devstack('unstack')
        self.assertEqual(
            texts, (self.nova_conf.read_text(), self.cpu_conf.read_text()))

    def test_unstack_before_stack(self):
        self.devstack('unstack')
        self.assertEqual(_NOVA_CONF, self.nova_conf.read_text())
        self.nova_conf.unlink()
        self.devstack('unstack')
        self.assertFalse(self.nova_conf.exists())

    def test_clean(self):
        before = self._files()
        self._stack()
        self.assertNotEqual(before, self._files())
        self.devstack('unstack')
        calls = self.devstack(
            'clean', GLOBAL_VENV='True', DEVSTACK_VENV='/venv')
        self.assertEqual('pip_uninstall nova-kvm-ext from /venv', calls[0])
        # What stays is devstack's own.
        after = set(self._files()) - {
            'calls', 'etc/nova-cpu.conf', 'etc/tempest.conf'}
        self.assertEqual(set(before), after)

    def test_clean_in_venv(self):
        # Not with the Python of the caller.
        (self.dir / 'venv/bin').mkdir(parents=True)
        (self.dir / 'bin/python').rename(self.dir / 'venv/bin/python3')
        venv = {'GLOBAL_VENV': 'True', 'DEVSTACK_VENV': self.dir / 'venv',
                'PYTHON': '/nonexistent'}
        self.devstack('stack install', **venv)
        path_file = self.dir / 'site/nova-kvm-ext-devstack.pth'
        self.assertTrue(path_file.exists())
        self.devstack('clean', **venv)
        self.assertFalse(path_file.exists())

    def test_clean_without_venv(self):
        calls = self.devstack('clean', GLOBAL_VENV='False')
        self.assertEqual('pip_uninstall nova-kvm-ext from ', calls[0])
