"""What every server is built of: settings, identity, authorization, validation, errors, health, telemetry, channels.

A service declares its RPCs in its proto (who may call, on whose behalf, how often), writes one method for each, and
hands both
to `servers.mesh.server.MeshServer`. Nothing about a call is decided twice.
"""
