"""Inputs that once did harm, a file for each kind, and what is right for them, on every broker and backend they touch."""
