"""What is derived from the contracts in `protos/`: stubs, descriptor set, OpenAPI, reference, and their checks."""
