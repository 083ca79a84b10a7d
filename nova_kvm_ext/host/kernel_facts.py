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

"""Reads the processor, the kernel's modules and udev's rules.

Returns frozen data; makes no decision. Tests can replace the root of all
paths. A value that cannot be read is absent, never an error.
"""

import errno
import glob
import io
import os
import re
import struct

from nova_kvm_ext.host import model

# arch/x86/include/asm/msr-index.h
_FEAT_CTL, _FEAT_CTL_LOCKED, _FEAT_CTL_VMX = 0x3a, 1 << 0, 1 << 2
_VM_CR, _VM_CR_SVM_DISABLED = 0xc0010114, 1 << 4

# What kvm_intel, kvm_amd and the kernel's own start-up say (vmx.c, svm.c,
# feat_ctl.c), old and new.
_DISABLED_MESSAGE = re.compile(
    r'(kvm|vmx|svm)[^\n]*(disabled|not enabled)[^\n]*bios', re.IGNORECASE)
_LOG_RECORDS = 20_000

_VENDOR_MODULES = {'GenuineIntel': ('kvm_intel',),
                   'AuthenticAMD': ('kvm_amd',),
                   'HygonGenuine': ('kvm_amd',)}
_X86 = ('x86_64', 'i686')


# Below the 4 MiB from which on the kernel refuses a read of /proc/sys.
_READ_BYTES = 2 * 1024 * 1024


def read(path: str, root: str) -> str:
    """A text file, or '' where it cannot be read."""
    try:
        with open(os.path.join(root, path.lstrip('/')), 'rb') as f:
            return f.read(_READ_BYTES).decode(errors='replace')
    except OSError:
        return ''


def read_cpu(arch: str, root: str = '/') -> model.CPUFacts:
    """The processor's virtualization, and whether firmware locked it.

    :param arch: uname's name of the architecture
    """
    if arch not in _X86:
        return model.CPUFacts(
            arch, locked_source=f'nothing to lock on {arch}')
    info = read('/proc/cpuinfo', root)
    vendor = re.search(r'^vendor_id\s*:\s*(\S+)', info, re.MULTILINE)
    found = re.search(r'^flags\s*:(.*)$', info, re.MULTILINE)
    flags = found[1].split() if found else []
    name = vendor[1] if vendor else ''
    locked, source = _locked(name, root)
    return model.CPUFacts(
        arch, name,
        next((flag for flag in ('vmx', 'svm') if flag in flags), None),
        'hypervisor' in flags, locked, source)


def _locked(vendor: str, root: str) -> tuple[bool | None, str]:
    amd = _VENDOR_MODULES.get(vendor) == ('kvm_amd',)
    register = _read_msr(_VM_CR if amd else _FEAT_CTL, root)
    if register is not None and amd:
        return bool(register & _VM_CR_SVM_DISABLED), 'MSR VM_CR'
    if register is not None:
        return (bool(register & _FEAT_CTL_LOCKED) and
                not register & _FEAT_CTL_VMX), 'MSR IA32_FEATURE_CONTROL'
    if read('/sys/class/misc/kvm/dev', root):
        # No need to read thousands of messages.
        return False, 'KVM has started (/sys/class/misc/kvm)'
    message = _DISABLED_MESSAGE.search(_read_kernel_log(root))
    if message:
        return True, f'the kernel\'s message "{message[0]}"'
    return None, ('/dev/cpu/0/msr cannot be read and the kernel has no '
                  'message about it')


def _read_msr(register: int, root: str) -> int | None:
    """A model-specific register of the first CPU (msr(4))."""
    try:
        descriptor = os.open(os.path.join(root, 'dev/cpu/0/msr'),
                             os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        value = os.pread(descriptor, 8, register)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return struct.unpack('<Q', value)[0] if len(value) == 8 else None


def _read_kernel_log(root: str) -> str:
    """The kernel's messages, as far as this process may read them."""
    records: list[str] = []

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)

    try:
        # Not os.read: eventlet's waits where there is nothing more to read.
        with io.FileIO(os.path.join(root, 'dev/kmsg'), 'r',
                       opener=opener) as log:
            for _ in range(_LOG_RECORDS):
                try:
                    # One record a read.
                    record = log.read(8192)
                except OSError as e:
                    if e.errno == errno.EPIPE:  # overwritten before a read
                        continue
                    break
                if not record:
                    break
                records.append(record.decode(errors='replace'))
    except OSError:
        pass
    return '\n'.join(records)


def read_kernel(vendor: str, arch: str, release: str,
                root: str = '/') -> model.KernelFacts:
    """The running kernel and the modules that KVM is made of.

    :param vendor: ``vendor_id`` of /proc/cpuinfo
    :param release: uname's release
    """
    loaded = re.findall(r'^(\S+)', read('/proc/modules', root), re.MULTILINE)
    # The kernel names a module with _, its file may have -.
    builtin = _module_files('modules.builtin', r'^\S*?([^/\s]+)\.ko', release,
                            root)
    loadable = _module_files('modules.dep', r'^(?:\S*/)?([^/\s]+)\.ko\S*:',
                             release, root)
    blocked = _read_blocked(root)
    shown = {os.path.basename(path) for path in
             glob.glob(os.path.join(root, 'sys/module/*'))}
    names = {'kvm', 'vhost_net'}
    names |= {name for name in shown if name.startswith('kvm_')}
    if arch in _X86:
        names |= set(_VENDOR_MODULES.get(vendor, ()))
    modules = {}
    for name in sorted(names):
        state = ('loaded' if name in loaded else
                 'builtin' if name in shown or name in builtin else
                 'loadable' if name in loadable else 'missing')
        nested = read(f'/sys/module/{name}/parameters/nested', root).strip()
        modules[name] = model.ModuleFacts(
            name, state, blocked.get(name, ''), nested or None)
    return model.KernelFacts(
        release, os.path.exists(os.path.join(root, 'proc/modules')),
        os.path.exists(os.path.join(
            root, f'lib/modules/{release}/modules.dep')), modules,
        {name: number for name in ('kvm', 'vhost-net') if (
            number := read(f'/sys/class/misc/{name}/dev', root).strip())})


def _module_files(file: str, pattern: str, release: str,
                  root: str) -> set[str]:
    text = read(f'/lib/modules/{release}/{file}', root)
    return {name.replace('-', '_')
            for name in re.findall(pattern, text, re.MULTILINE)}


def _read_blocked(root: str) -> dict[str, str]:
    """By module, the line that prevents modprobe from loading it.

    modprobe.d(5). ``blacklist`` only stops loading by alias, that is at
    boot; ``install NAME /bin/false`` stops all of it.
    """
    blocked = {}
    for directory in ('/usr/lib/modprobe.d', '/lib/modprobe.d',
                      '/run/modprobe.d', '/etc/modprobe.d'):
        for path in sorted(glob.glob(
                os.path.join(root, directory[1:], '*.conf'))):
            name = f'{directory}/{os.path.basename(path)}'
            for number, line in enumerate(
                    read(name, root).splitlines(), 1):
                words = line.split('#')[0].split()
                if len(words) >= 2 and (
                        words[0] == 'blacklist' or words[0] == 'install' and
                        words[2:] and words[2].rpartition('/')[2] in
                        ('false', 'true')):
                    blocked[words[1].replace('-', '_')] = (
                        f'{name}:{number}: {" ".join(words)}')
    return blocked


def read_udev(root: str = '/') -> model.UdevFacts:
    """Whether udev runs, and what its rules say of kvm and vhost-net."""
    files = {}
    # udev(7): a file hides those of its name in the directories before it.
    for directory in ('/lib/udev/rules.d', '/usr/lib/udev/rules.d',
                      '/usr/local/lib/udev/rules.d', '/run/udev/rules.d',
                      '/etc/udev/rules.d'):
        for path in glob.glob(os.path.join(root, directory[1:], '*.rules')):
            file = os.path.basename(path)
            files[file] = f'{directory}/{file}'
    rules = []
    for file in sorted(files):
        text = read(files[file], root)
        if not any(device in text for device in ('kvm', 'vhost-net')):
            # Nearly all of them, with thousands of lines.
            continue
        for line in re.sub(r'\\\n', '', text).splitlines():
            matched = re.search(r'\bKERNEL=="([^"]*)"', line)
            if matched is None or line.lstrip().startswith('#'):
                continue
            devices = set(matched[1].split('|')) & {'kvm', 'vhost-net'}
            group, mode = (re.search(rf'\b{key}:?="([^"]*)"', line)
                           for key in ('GROUP', 'MODE'))
            if group or mode:
                rules += [model.UdevRule(
                    files[file], device, group[1] if group else '',
                    mode[1] if mode else '') for device in sorted(devices)]
    return model.UdevFacts(
        os.path.exists(os.path.join(root, 'run/udev/control')), tuple(rules))
