# For a compute node that has the class nova::compute::libvirt of puppet-nova.

class profile::nova_kvm_ext {

  include nova::compute::libvirt

  package { 'python3-nova-kvm-ext':
    ensure => present,
    tag    => ['openstack', 'nova-package'],
  }

  # puppet-nova sets compute_driver to Nova's own driver, in each version.
  Nova_config <| title == 'DEFAULT/compute_driver' |> {
    value => 'kvm_ext.KVMDriver'
  }

  # On Debian puppet-nova installs nova-compute-kvm, with which
  # nova-compute-kvm-ext conflicts.
  if $facts['os']['family'] == 'Debian' {
    Package <| title == 'nova-compute-kvm' |> {
      name => 'nova-compute-kvm-ext'
    }
  }
}
