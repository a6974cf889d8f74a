"""Shared settings of all tests."""
