"""The event bus broker: XSUB in, XPUB out, the last value of every state, and a beat that shows loss."""
