"""The servers of BehaviorGuard: one folder a service, all built of `servers.mesh`."""
