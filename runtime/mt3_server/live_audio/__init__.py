"""Live audio over a WebSocket: the protocol, what decodes it, and the socket."""
