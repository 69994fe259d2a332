"""Tests of programs that use the package; a package itself, since it has a conftest of its own."""
