"""Reaching a device: transports (this machine, SSH), and the session that runs the agent's jobs through either of them."""
