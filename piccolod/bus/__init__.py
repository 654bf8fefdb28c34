"""The client side of the bus: events over the broker, commands straight to a module."""
