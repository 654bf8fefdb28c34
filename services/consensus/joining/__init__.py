"""How a node becomes a member of a cluster, and how it ceases to be one."""
