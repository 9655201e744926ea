"""Requests to a server, what they cost, and whether every answer is right."""
