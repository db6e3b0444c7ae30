"""The process: scoring over gRPC, hosting, keeping versions, running cycles, metrics, command line."""
