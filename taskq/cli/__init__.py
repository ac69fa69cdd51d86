"""The command line. It turns options into calls of the public face, and errors into messages and exit codes; no more."""
