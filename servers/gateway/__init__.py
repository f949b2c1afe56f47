"""The only HTTP server: REST and WebSocket for browsers, derived from the contract, spoken to the services as gRPC."""
