# shellcheck shell=bash
#
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

# A devstack whose nova-compute runs KVMDriver, and an image with a guest agent
# in it. devstack's own VIRT_DRIVER=libvirt installs libvirt and QEMU and writes
# nova.conf; this names our driver there instead, and takes that back again.
#
# Sourced by devstack, once for each phase:
#     source plugin.sh stack pre-install|install|post-config|extra|test-config
#     source plugin.sh unstack|clean

_XTRACE_KVM_EXT=$(set +o | grep xtrace)
set +o xtrace

KVM_EXT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The one that runs Nova; unstack.sh and clean.sh have another in their PATH.
_KVM_EXT_PYTHON=${PYTHON:-python3}
if [[ ${GLOBAL_VENV:-} == True && -x ${DEVSTACK_VENV:-}/bin/python3 ]]; then
    _KVM_EXT_PYTHON=$DEVSTACK_VENV/bin/python3
fi

# Each option of [kvm_ext], and what it can be where that is a choice.
_KVM_EXT_OPTIONS="
virt_type kvm|qemu|auto
cpu_mode host-model|host-passthrough|maximum|custom|none
cpu_model
image_cpu_modes
image_cpu_models
keep_guest_cpu
vhost_net prefer|require|off
load_vhost_net
max_vhost_queues
guest_agent image|always
guest_agent_timeout
host_check enforce|warn|off
image_max_virtual_gb
migration_stalled wait|post-copy|pause|abort
migration_stalled_allowed
resume_io_paused auto|never
"

# Calls a function with each option that local.conf sets, its value and its
# choices.
function _for_each_kvm_ext_option {
    local option choices setting
    while read -r option choices; do
        setting=KVM_EXT_${option^^}
        if [[ -n $option && -n ${!setting:-} ]]; then
            "$1" "$option" "${!setting}" "$choices"
        fi
    done <<< "$_KVM_EXT_OPTIONS"
}

function _check_kvm_ext_option {
    local option=$1 value=$2 choices=$3
    if [[ -n $choices && ! $value =~ ^($choices)$ ]]; then
        die $LINENO "KVM_EXT_${option^^}=$value in local.conf: it can be" \
            "${choices//|/, }."
    fi
}

# The value of [kvm_ext] counts where both groups have one. Commented out, the
# other value misleads no reader of nova.conf.
function _write_kvm_ext_option {
    local option=$1 value=$2 replaced name
    case $option in
    virt_type) replaced="virt_type" ;;
    cpu_mode) replaced="cpu_mode cpu_model cpu_models" ;;
    cpu_model) replaced="cpu_model cpu_models" ;;
    *) replaced="" ;;
    esac
    iniset "$NOVA_CONF" kvm_ext "$option" "$value"
    for name in $replaced; do
        inicomment "$NOVA_CONF" libvirt "$name"
    done
}

# What is found out here need not be after a quarter of an hour of installing.
function check_kvm_ext {
    if [[ $VIRT_DRIVER != libvirt ]]; then
        die $LINENO "VIRT_DRIVER=$VIRT_DRIVER: nova-kvm-ext needs libvirt." \
            "Remove the one or the other from local.conf."
    fi
    "$_KVM_EXT_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die $LINENO "nova-kvm-ext needs Python 3.11 or newer, and" \
            "$_KVM_EXT_PYTHON is older. Use a newer distribution."
    _for_each_kvm_ext_option _check_kvm_ext_option
}

function _kvm_ext_path_file {
    local directory
    directory=$("$_KVM_EXT_PYTHON" -c \
        'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$directory/nova-kvm-ext-devstack.pth"
}

# devstack installs Nova editable. So must this be: from a wheel, our
# nova/virt/kvm_ext would land in site-packages, and Nova looks only where its
# own nova/virt is. Python asks for an editable Nova only where no directory in
# its path has something called nova, and with this package one has. With
# Nova's source in the path as well it finds Nova first, and us through it.
function install_kvm_ext {
    local path_file
    path_file=$(_kvm_ext_path_file)
    sudo tee "$path_file" <<< "$NOVA_DIR"
    setup_develop -bindep=devstack "$KVM_EXT_DIR"
    # A Nova cloned without its tags calls itself 0.0.1, and pip puts the one
    # from PyPI in its place.
    "$_KVM_EXT_PYTHON" -P - "$NOVA_DIR" <<'PYTHON' || die $LINENO \
        "nova-kvm-ext is not installed beside the Nova of $NOVA_DIR, see above."
from importlib import util
import os
import sys

found = os.path.realpath(str(util.find_spec('nova').origin))
if not found.startswith(os.path.realpath(sys.argv[1]) + os.sep):
    sys.exit(f'pip has replaced Nova, it is now {found}. Clone {sys.argv[1]} '
             f'with its tags (no GIT_DEPTH), and stack again.')
if util.find_spec('nova.virt.kvm_ext') is None:
    sys.exit(f'Nova ({found}) does not find nova.virt.kvm_ext. It is to be '
             f'installed by pip install -e, with setuptools 64 or newer.')
PYTHON
}

# nova-compute reads nova-cpu.conf, which devstack copies from this file when
# it starts the service.
function configure_kvm_ext {
    inicomment "$NOVA_CONF" DEFAULT compute_driver
    iniset "$NOVA_CONF" DEFAULT compute_driver kvm_ext.KVMDriver
    _for_each_kvm_ext_option _write_kvm_ext_option

    # Warnings are exit code 1, failures 2 and more. Where the check is enforced, nova-compute would
    # not start either, and stack.sh would only say that it waited in vain.
    local command result=0
    command=$(command -v nova-kvm-ext)
    sudo "$command" host check --config-file "$NOVA_CONF" || result=$?
    if [[ $result -gt 1 && ${KVM_EXT_HOST_CHECK:-enforce} == enforce ]]; then
        die $LINENO "No guest would run here as nova.conf asks. Apply the" \
            "remedies above, or set KVM_EXT_HOST_CHECK=warn in local.conf."
    fi
}

# Made of this machine's own kernel, busybox and guest agent, see
# nova_kvm_ext/boot/testguest.py. Only root can read Ubuntu's kernels.
function create_kvm_ext_agent_image {
    local path
    path=$(sudo "$_KVM_EXT_PYTHON" -P -B - "$DATA_DIR/nova-kvm-ext" <<'PYTHON'
import sys

from nova_kvm_ext.boot import testguest

try:
    guest = testguest.build(sys.argv[1])
except testguest.BuildError as e:
    sys.exit(str(e))
if not guest.agent:
    sys.exit('There is no qemu-ga here to put into the image; install '
             'qemu-guest-agent.')
print(guest.path)
PYTHON
    ) || die $LINENO "The image with the guest agent cannot be made, see" \
        "above; KVM_EXT_AGENT_IMAGE=False makes no image."
    openstack --os-cloud devstack-admin --os-region-name "$REGION_NAME" \
        image create --public --disk-format raw --container-format bare \
        --min-ram 256 --min-disk 1 --property hw_qemu_guest_agent=yes \
        --file "$path" "$KVM_EXT_AGENT_IMAGE_NAME"
}

# What devstack leaves at tempest's default, and this driver can do. Not
# change_password: tempest logs in with the new password over SSH, which needs
# an image that has both a guest agent and sshd. cirros has no agent.
function configure_tempest_for_kvm_ext {
    iniset "$TEMPEST_CONFIG" compute-feature-enabled stable_rescue True
    if [[ $(trueorfalse False LIVE_MIGRATION_AVAILABLE) == True ]]; then
        iniset "$TEMPEST_CONFIG" compute-feature-enabled \
            volume_backed_live_migration True
        iniset "$TEMPEST_CONFIG" compute-feature-enabled shelve_migrate True
    fi
}

# Whatever starts nova-compute next gets the driver that devstack had chosen.
function restore_nova_conf {
    local conf name
    for conf in "$NOVA_CONF" "${NOVA_CPU_CONF:-}"; do
        [[ -f $conf ]] || continue
        name=$(iniget "$conf" DEFAULT compute_driver)
        [[ $name == kvm_ext.KVMDriver ]] || continue
        inidelete "$conf" DEFAULT compute_driver
        iniuncomment "$conf" DEFAULT compute_driver
        for name in virt_type cpu_mode cpu_model cpu_models; do
            iniuncomment "$conf" libvirt "$name"
        done
        # The whole group: what local.conf has added to it is ours too.
        sed -i -e '/^\[kvm_ext\]/,/^\[/ { /^\[kvm_ext\]/d; /^\[/!d }' "$conf"
    done
}

# The image itself goes with Glance's database and store.
function clean_kvm_ext {
    local venv=${PIP_VIRTUAL_ENV:-} path_file
    if [[ ${GLOBAL_VENV:-} == True ]]; then
        venv=$DEVSTACK_VENV
    fi
    PIP_VIRTUAL_ENV=$venv pip_uninstall nova-kvm-ext
    path_file=$(_kvm_ext_path_file)
    sudo rm -f "$path_file"
    sudo rm -rf "$DATA_DIR/nova-kvm-ext" "$KVM_EXT_DIR/nova_kvm_ext.egg-info"
    # The answer that virt_type = auto keeps.
    sudo rm -f "$NOVA_STATE_PATH/kvm-ext-probe.json"
}

$_XTRACE_KVM_EXT

if is_service_enabled nova; then
    case "$1 ${2:-}" in
    "stack pre-install")
        check_kvm_ext
        ;;
    "stack install")
        # nova-api checks what flavors say of kvm_ext, so it needs it too.
        echo_summary "Installing nova-kvm-ext"
        install_kvm_ext
        ;;
    "stack post-config")
        if is_service_enabled n-cpu; then
            echo_summary "Configuring Nova for nova-kvm-ext"
            configure_kvm_ext
        fi
        ;;
    "stack test-config")
        # After tempest has chosen its images: it cannot log in to this one.
        if is_service_enabled g-api && [[ $KVM_EXT_AGENT_IMAGE == True ]]; then
            echo_summary "Making an image with a guest agent"
            create_kvm_ext_agent_image
        fi
        if is_service_enabled tempest; then
            configure_tempest_for_kvm_ext
        fi
        ;;
    "unstack ")
        restore_nova_conf
        ;;
    "clean ")
        clean_kvm_ext
        ;;
    esac
fi
