"""Names the suite's marker: -m small, or -k "cuda and small", picks what is cheap enough for a sanitizer."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "small: a case that is cheap enough for simulators and sanitizers")
