"""Cameras → captures: one module for each technology, each a thread of its own."""
