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

"""The configuration files of a cloud's services.

One function for each file; write() writes them all. Everything listens on the
first compute's address, in the cloud's own network. Intervals are short where
a check would have to wait for them.

It starts nothing and reads nothing but its arguments.
"""

import configparser
import pathlib
import textwrap

from nova_kvm_ext.tests.cloud import ceph
from nova_kvm_ext.tests.cloud import sandbox
from nova_kvm_ext.tests.cloud import storage as storage_module

CONTROLLER = sandbox.ADDRESSES[sandbox.COMPUTES[0]]
REGION = 'RegionOne'
PORTS = {'identity': 5000, 'image': 9292, 'placement': 8778, 'network': 9696,
         'compute': 8774, 'block-storage': 8776}
URLS = {
    'identity': f'http://{CONTROLLER}:{PORTS["identity"]}/v3',
    'image': f'http://{CONTROLLER}:{PORTS["image"]}',
    'placement': f'http://{CONTROLLER}:{PORTS["placement"]}',
    'network': f'http://{CONTROLLER}:{PORTS["network"]}',
    'compute': f'http://{CONTROLLER}:{PORTS["compute"]}/v2.1',
    'block-storage': f'http://{CONTROLLER}:{PORTS["block-storage"]}/v3',
}
APPLICATIONS = {
    'identity': 'keystone.wsgi.api:application',
    'image': 'glance.wsgi.api:application',
    'placement': 'placement.wsgi.api:application',
    'network': 'neutron.wsgi.api:application',
    'compute': 'nova.wsgi.osapi_compute:application',
    'block-storage': 'cinder.wsgi.api:application',
}
DATABASES = ('keystone', 'glance', 'placement', 'neutron', 'nova_api', 'nova',
             'nova_cell0')
PHYSICAL_NETWORK = 'physnet1'
BRIDGE = 'br-phys'

Options = dict[str, dict[str, object]]


def libvirt_uri(state: pathlib.Path, compute: str) -> str:
    """How the other compute's libvirt reaches this one's."""
    return (f'qemu+unix:///system?socket={state}/{compute}/libvirt-run/'
            f'libvirt-sock')


class Configuration:
    """All files of one cloud.

    :param state: directory of the cloud
    :param venv: directory of the environment that the services run from
    :param password: of the administrator and of each service
    :param storage: what images, disks and volumes lie on
    """

    def __init__(self, state: pathlib.Path, venv: pathlib.Path,
                 password: str, storage: storage_module.Storage) -> None:
        self.state = state
        self._storage = storage
        self.etc = state / 'etc'
        self._bin = venv / 'bin'
        self._password = password

    def database(self, name: str) -> str:
        """The URL of a database."""
        return (f'mysql+pymysql://root@localhost/{name}'
                f'?unix_socket={self.state}/run/mariadb.sock&charset=utf8mb4')

    @property
    def transport(self) -> str:
        """The URL of the message queue."""
        return f'rabbit://guest:guest@{CONTROLLER}:5672/'

    def write(self) -> None:
        """Write every file."""
        self.etc.mkdir(mode=0o700)
        for name in ('run', 'lib'):
            (self.state / name).chmod(0o700)
        for name, options in (
            ('keystone', self._keystone()),
            # The one name that Glance takes.
            ('glance-api', self._glance()),
            ('placement', self._placement()), ('neutron', self._neutron()),
            ('nova', self._nova() | self._nova_databases()),
            # A compute must not reach them.
            ('nova-compute', self._nova()),
            ('cinder', self._cinder()),
        ):
            write_options(self.etc / f'{name}.conf', options)
        for compute in sandbox.COMPUTES:
            write_options(self.etc / f'{compute}.conf', self._compute(compute))
            write_options(self.etc / f'{compute}-agent.conf', {
                'DEFAULT': {'host': compute}})
        for name in (*sandbox.COMPUTES, 'cinder-scheduler', 'cinder-volume',
                     'neutron-rpc', 'nova-conductor',
                     'nova-scheduler'):
            # A check writes here what it wants otherwise.
            write_options(self.etc / f'{name}-changed.conf', {})
        for service, application in APPLICATIONS.items():
            # Not by its command line, which some applications parse too.
            directory = self.etc / f'{service}-api'
            directory.mkdir()
            if service == 'block-storage':
                # The name of one file is all that Cinder can be told.
                (directory / '.cinder').mkdir()
                (directory / '.cinder' / 'cinder.conf').symlink_to(
                    self.etc / 'cinder.conf')
            (directory / 'gunicorn.conf.py').write_text(textwrap.dedent(f'''\
                wsgi_app = {application!r}
                bind = '{CONTROLLER}:{PORTS[service]}'
                worker_class = 'gthread'
                workers = 1
                threads = 8
                timeout = 0
                graceful_timeout = 5
                keepalive = 75
                worker_tmp_dir = {str(self.state / 'tmp')!r}
                '''))
        (self.etc / 'rabbitmq.conf').write_text(
            'loopback_users = none\nlisteners.tcp.default = 5672\n')
        (self.etc / 'enabled_plugins').write_text('[].\n')
        self._storage.write(self.state)
        if self._storage.has_ceph:
            ceph.write(self.state)
        (self.etc / 'clouds.yaml').write_text(textwrap.dedent(f'''\
            clouds:
              kvm-ext:
                auth:
                  auth_url: {URLS['identity']}
                  username: admin
                  password: {self._password}
                  project_name: admin
                  user_domain_id: default
                  project_domain_id: default
                region_name: {REGION}
            '''))

    def _paths(self, name: str) -> Options:
        return {
            'DEFAULT': {'state_path': self._directory(name)},
            'oslo_concurrency': {'lock_path': self._directory(f'{name}/lock')},
            'oslo_policy': {'enforce_new_defaults': True},
        }

    def _directory(self, name: str) -> pathlib.Path:
        path = self.state / 'lib' / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _service_user(self, name: str) -> dict[str, object]:
        return {
            'auth_type': 'password',
            'auth_url': URLS['identity'],
            'username': name,
            'password': self._password,
            'project_name': 'service',
            'user_domain_id': 'default',
            'project_domain_id': 'default',
            'region_name': REGION,
            # A connection that was kept may be closed when it is used again.
            'connect_retries': 3,
        }

    def _token(self, name: str) -> dict[str, object]:
        return {**self._service_user(name),
                'www_authenticate_uri': URLS['identity'],
                'service_token_roles_required': True}

    def _keystone(self) -> Options:
        keys = self._directory('keystone/keys')
        return {
            'database': {'connection': self.database('keystone')},
            'token': {'provider': 'fernet', 'expiration': 14400},
            'fernet_tokens': {'key_repository': keys},
            'identity': {'password_hash_rounds': 4},
            # Not shared, so one process serves.
            'cache': {'enabled': True, 'backend': 'dogpile.cache.memory'},
        }

    def _glance(self) -> Options:
        return self._storage.glance(self._directory('glance/images')) | {
            'database': {'connection': self.database('glance')},
            'os_glance_staging_store': {
                'filesystem_store_datadir': self._directory('glance/staging')},
            'os_glance_tasks_store': {
                'filesystem_store_datadir': self._directory('glance/tasks')},
            'keystone_authtoken': self._token('glance'),
            'paste_deploy': {
                'flavor': 'keystone',
                'config_file': self._paste('glance', 'glance-api-paste.ini')},
            'oslo_concurrency': {'lock_path': self._directory('glance/lock')},
        }

    def _placement(self) -> Options:
        return {
            'placement_database': {'connection': self.database('placement')},
            'keystone_authtoken': self._token('placement'),
        }

    def _neutron(self) -> Options:
        options = self._paths('neutron')
        options['DEFAULT'] |= {
            'core_plugin': 'ml2',
            'service_plugins': '',
            'transport_url': self.transport,
            'api_paste_config': self._paste('neutron', 'api-paste.ini'),
            'rpc_workers': 1,
            'rpc_state_report_workers': 0,
            'dhcp_agent_notification': False,
        }
        return options | {
            'database': {'connection': self.database('neutron')},
            'keystone_authtoken': self._token('neutron'),
            'nova': self._service_user('nova'),
            'ml2': {'type_drivers': 'flat,vlan',
                    'tenant_network_types': 'vlan',
                    'mechanism_drivers': 'openvswitch'},
            'ml2_type_vlan': {
                'network_vlan_ranges': f'{PHYSICAL_NETWORK}:100:199'},
            # There may be no kernel module of Open vSwitch.
            'ovs': {'bridge_mappings': f'{PHYSICAL_NETWORK}:{BRIDGE}',
                    'datapath_type': 'netdev',
                    'ovsdb_connection': 'unix:/run/openvswitch/db.sock'},
            'agent': {'root_helper': 'env', 'report_interval': 10},
            'securitygroup': {'firewall_driver': 'openvswitch'},
        }

    def _paste(self, project: str, name: str) -> pathlib.Path:
        return self._bin.parent / 'etc' / project / name

    def _nova(self) -> Options:
        options = self._paths('nova')
        options['DEFAULT'] |= {
            'compute_driver': 'kvm_ext.KVMDriver',
            'transport_url': self.transport,
            'instances_path': self.state / 'instances',
            # The soak has eight servers and those whose end Placement has not
            # been told yet. One CPU must do.
            'initial_cpu_allocation_ratio': 16,
            # The computes cannot reach each other by SSH.
            'allow_resize_to_same_host': True,
            # Up to a minute before a compute is discovered, else.
            'periodic_fuzzy_delay': 0,
            # A busy machine is no dead service.
            'report_interval': 5,
            'service_down_time': 60,
            'update_resources_interval': 15,
            'sync_power_state_interval': 60,
            'graceful_shutdown_timeout': 8,
            'manager_shutdown_timeout': 5,
            'vif_plugging_timeout': 90,
            'shutdown_timeout': 30,
            'resume_guests_state_on_host_boot': False,
        }
        storage = self._storage.nova(self.state)
        for group in ('nova_sys_admin', 'vif_plug_ovs_privileged',
                      'vif_plug_linux_bridge_privileged', 'privsep_osbrick'):
            options[group] = {'helper_command': (
                f'{self._bin}/privsep-helper --config-file '
                f'{self.etc}/nova-compute.conf')}
        return options | {
            'keystone_authtoken': self._token('nova'),
            'service_user': {**self._service_user('nova'),
                             'send_service_user_token': True},
            'placement': self._service_user('placement'),
            'neutron': self._service_user('neutron'),
            'glance': self._service_user('glance'),
            'wsgi': {'api_paste_config': self._paste('nova', 'api-paste.ini')},
            'conductor': {'workers': 1},
            'scheduler': {'workers': 1, 'discover_hosts_in_cells_interval': 5,
                          'image_metadata_prefilter': True},
            'filter_scheduler': {
                'available_filters': 'nova.scheduler.filters.all_filters'},
            'compute': {'live_migration_wait_for_vif_plug': False},
            'libvirt': {
                'live_migration_uri': libvirt_uri(self.state, '%s'),
                **storage['libvirt']},
            'cinder': {**self._service_user('cinder'),
                       **storage.get('cinder', {})},
            'kvm_ext': {'virt_type': 'qemu', 'cpu_mode': 'host-model'},
            'os_vif_ovs': {'ovsdb_connection':
                           'unix:/run/openvswitch/db.sock'},
            'vnc': {'enabled': False},
        }

    def _cinder(self) -> Options:
        options = self._paths('cinder')
        storage = self._storage.cinder(self.state)
        options['DEFAULT'] |= {
            'transport_url': self.transport,
            'my_ip': CONTROLLER,
            'host': sandbox.COMPUTES[0],
            'api_paste_config': self._paste('cinder', 'api-paste.ini'),
            'resource_query_filters_file':
                self._paste('cinder', 'resource_filters.json'),
            'glance_api_servers': URLS['image'],
            'backend_stats_polling_interval': 15,
            'report_interval': 5,
            'service_down_time': 60,
            'graceful_shutdown_timeout': 5,
            'quota_volumes': 100,
            'quota_snapshots': 100,
            **storage.pop('DEFAULT')}
        return options | storage | {
            'database': {'connection': self.database('cinder')},
            'keystone_authtoken': self._token('cinder'),
            'service_user': {**self._service_user('cinder'),
                             'send_service_user_token': True},
            'nova': {**self._service_user('cinder'), 'interface': 'public'},
        }

    def _nova_databases(self) -> Options:
        return {'api_database': {'connection': self.database('nova_api')},
                'database': {'connection': self.database('nova')}}

    def _compute(self, compute: str) -> Options:
        address = sandbox.ADDRESSES[compute]
        return {
            'DEFAULT': {
                'host': compute,
                'my_ip': address,
                'state_path': self._directory(compute)},
            'oslo_concurrency': {
                'lock_path': self._directory(f'{compute}/lock')},
            'libvirt': {'live_migration_inbound_addr': address},
        }


def write_options(path: pathlib.Path, options: Options) -> None:
    """Write a file of options, group by group."""
    parser = configparser.ConfigParser(
        interpolation=None, default_section='')
    for group, values in options.items():
        parser[group] = {name: str(value) for name, value in values.items()}
    with open(path, 'w') as file:
        parser.write(file)
