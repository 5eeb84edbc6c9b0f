"""Settings are read from the environment, and wrong ones named."""

import pytest

from api.settings import Settings


def test_settings_are_read_and_wrong_ones_named(monkeypatch):
    monkeypatch.setenv("MINICNN_QUEUE", "7")
    assert Settings.load().queue == 7
    assert Settings.load({"queue": 3}).queue == 3
    for name, value in (("QUEUE", "many"), ("QUEUE", "-1"), ("TIMEOUT", "inf"), ("SLOTS", "0")):
        monkeypatch.setenv(f"MINICNN_{name}", value)
        with pytest.raises(ValueError, match=name.lower() if value == "0" else name):
            Settings.load()
        monkeypatch.delenv(f"MINICNN_{name}")
