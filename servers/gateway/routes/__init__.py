"""The gateway's routes: contract RPCs over REST and WebSocket, the session, health, pages."""
