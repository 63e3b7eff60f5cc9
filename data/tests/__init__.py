"""Tests of data/ and of everything besides the equations, which are in test_cofi.py."""
