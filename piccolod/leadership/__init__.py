"""Who may act: resources, the deadline page, the gate in front of every led action, and the guards behind it."""
