"""Inputs that once did harm, a file for each kind: what is right for them, on every broker and backend that the kind touches."""
